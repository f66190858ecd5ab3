"""Object detectors of transformers: DETR, RT-DETRv2, D-FINE and the others of its Auto class."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

# Otherwise transformers asks a service to convert the pickled weights of a hub repository.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForObjectDetection,
    ImageProcessingMixin,
    PretrainedConfig,
)
from transformers.utils import logging

from pipeline.utils.errors import InputError
from pipeline.utils.files import sha256_of_json
from pipeline.utils.weights import check_finite, weights_digest
from pipeline.vocabulary import Vocabulary
from teacher_cache.detectors.base import HUB_PREFIX, Detections, DetectorConfig

# Keys of the configuration files that change no output, besides those that begin with "_".
UNUSED_KEYS = ("transformers_version", "torch_dtype", "dtype", "id2label", "label2id")
MAX_REASON = 160


class TransformersDetector:
    """A frozen object detection model of transformers; see `teacher_cache.detectors.base.Detector`.

    Resizing, normalisation and the conversion of the outputs to boxes are those of the model's
    image processor. Weights are read from safetensors files or as plain data, and code in the
    model's folder or repository is never run.

    Attributes:
        name: `hf:` and the model's architecture.
        classes: the class names of the model's configuration, or the given ones.
        weights_digest: digest of the state dict.

    Args:
        config: its `name` is `hf:` with a folder or a name on the Hugging Face hub.
        revision: branch, tag or commit of the hub's repository.

    Raises:
        InputError: no such model, folder or file; a model for another task; weights that lack
            tensors or are not finite; or a wrong number of class names.
    """

    def __init__(
        self,
        config: DetectorConfig,
        vocabulary: Vocabulary,
        device: torch.device,
        revision: str = "main",
    ) -> None:
        if config.weights is not None:
            raise InputError(
                f"--detector-weights: expected none with {config.name}, which contains weights,"
                f" found {config.weights}"
            )
        source = config.name.removeprefix(HUB_PREFIX)
        options: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
        with _one_line_errors(config.name):
            model_config = AutoConfig.from_pretrained(source, **options)
            # A configuration may name an implementation that would be downloaded.
            model_config._attn_implementation = None
            model, report = AutoModelForObjectDetection.from_pretrained(
                source,
                config=model_config,
                dtype=torch.float32,
                weights_only=True,
                output_loading_info=True,
                **options,
            )
            self._processor = AutoImageProcessor.from_pretrained(source, **options)
            settings = [
                PretrainedConfig.get_config_dict(source, revision=revision)[0],
                ImageProcessingMixin.get_image_processor_dict(source, revision=revision)[0],
            ]
        for name in sorted(report["missing_keys"])[:1]:
            raise InputError(
                f"--detector: expected all weights of {model_config.model_type} in {config.name},"
                f" found none for {len(report['missing_keys'])} tensors, first {name}"
            )
        state = model.state_dict()
        check_finite(state, config.name)
        self.weights_digest = weights_digest(state)
        self.name = f"{HUB_PREFIX}{model_config.model_type}"
        self._settings_digest = sha256_of_json([_used_settings(each) for each in settings])
        self.classes = _class_names(config, model_config)
        self._threshold, self._device = config.score_threshold, device
        self._model = model.eval().to(device)

    @torch.inference_mode()
    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Boxes (N, 4), classes (N,) and scores (N,) of (h, w, 3) uint8 RGB images."""
        inputs = self._processor(
            images=list(images), return_tensors="pt", input_data_format="channels_last"
        )
        outputs = self._model(**inputs.to(self._device))
        # Copied before they are divided into images, so that the host waits for the device twice.
        outputs = SimpleNamespace(
            logits=outputs.logits.cpu().float(), pred_boxes=outputs.pred_boxes.cpu().float()
        )
        results = self._processor.post_process_object_detection(
            outputs, self._threshold, [image.shape[:2] for image in images]
        )
        return [(one["boxes"], one["labels"], one["scores"]) for one in results]

    def fingerprint_parts(self) -> dict[str, Any]:
        """Digests of weights, class names, and the settings of model and image processor."""
        return {
            "weights": self.weights_digest,
            "settings": self._settings_digest,
            "classes": sha256_of_json(self.classes),
        }


def _class_names(config: DetectorConfig, model_config: Any) -> list[str]:
    """The given names of the model's classes, or those of its configuration."""
    count = model_config.num_labels
    if config.classes is None:
        return [model_config.id2label.get(number, "") for number in range(count)]
    if len(config.classes) != count:
        raise InputError(
            f"--detector-classes: expected {count} names, as {config.name} has that number of"
            f" classes, found {len(config.classes)}"
        )
    return list(config.classes)


def _used_settings(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in settings.items()
        if key not in UNUSED_KEYS and not key.startswith("_")
    }


@contextmanager
def _one_line_errors(name: str) -> Iterator[None]:
    """Hides transformers' messages, warnings and progress bars, and shortens its errors.

    Raises:
        InputError: the body raised an error.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    # Of requests, of the operating system, of missing files, keys and types in configurations.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        reason = reason if len(reason) <= MAX_REASON else reason[: MAX_REASON - 3] + "..."
        raise InputError(
            f"--detector: expected hf: with an object detector of transformers, its name on the"
            f" Hugging Face hub or a folder, found {name} ({reason})"
        ) from None
    finally:
        logging.set_verbosity(verbosity)
