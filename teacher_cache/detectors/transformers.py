"""Object detectors of transformers: DETR, RT-DETRv2, D-FINE and the others of its Auto class."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from pipeline.utils.errors import InputError
from pipeline.utils.files import sha256_of_json
from pipeline.utils.hugging_face import (
    DEFAULT_REVISION,
    PretrainedSource,
    load_pretrained,
    one_line_errors,
)
from pipeline.utils.schema import Text
from pipeline.vocabulary import Vocabulary
from teacher_cache.detectors.base import HUB_PREFIX, Detections, Detector, DetectorConfig


class TransformersDetector(Detector):
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
        device: torch.device,
        vocabulary: Vocabulary,
        config: DetectorConfig,
        revision: Text = DEFAULT_REVISION,
    ) -> None:
        super().__init__(device, vocabulary)
        name = config.name.removeprefix(HUB_PREFIX)
        kind = "hf: with an object detector"
        self._source = PretrainedSource(name, "--detector", kind, config.name, revision)
        loaded = load_pretrained(
            self._source,
            "AutoModelForObjectDetection",
            "AutoImageProcessor",
            torch.float32,
        )
        self._processor, self.weights_digest = loaded.processor, loaded.weights_digest
        self.name = f"{HUB_PREFIX}{loaded.model_type}"
        self._settings_digest = sha256_of_json(loaded.settings)
        self.classes = _class_names(config, loaded.model.config)
        self._threshold = config.score_threshold
        self._model = loaded.model.to(device)

    @torch.inference_mode()
    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Boxes (N, 4), classes (N,) and scores (N,) of (h, w, 3) uint8 RGB images."""
        # What is wrong in a configuration may show here only.
        with one_line_errors(self._source):
            inputs = self._processor(
                images=list(images), return_tensors="pt", input_data_format="channels_last"
            )
            outputs = self._model(**inputs.to(self.device))
            # Copied before they are divided into images, so that the host waits twice only.
            outputs = SimpleNamespace(
                logits=outputs.logits.cpu().float(), pred_boxes=outputs.pred_boxes.cpu().float()
            )
            results = self._processor.post_process_object_detection(
                outputs, self._threshold, [image.shape[:2] for image in images]
            )
            return [(one["boxes"], one["labels"], one["scores"]) for one in results]

    def fingerprint(self) -> dict[str, Any]:
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
