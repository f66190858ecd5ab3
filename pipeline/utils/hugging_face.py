"""Pretrained models of transformers, an optional package, from a folder or the Hugging Face hub.

Weights are read from safetensors files or as plain data, and code in a model's folder or repository
is never run.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.utils.devices import is_out_of_memory
from pipeline.utils.errors import InputError
from pipeline.utils.logging import get_logger
from pipeline.utils.weights import check_finite, weights_digest

logger = get_logger(__name__)

# Keys of the configuration files that change no output, besides those that begin with "_".
UNUSED_KEYS = ("transformers_version", "torch_dtype", "dtype", "id2label", "label2id")
DEFAULT_REVISION = "main"
MAX_REASON = 160


@dataclass(frozen=True)
class PretrainedSource:
    """A model, and how errors name it.

    Attributes:
        model: a folder, or a name on the hub.
        option: the option that named it, with its field: "--detector".
        kind: what is expected: "hf: with an object detector".
        name: what was given; by default the model.
        revision: branch, tag or commit of the hub's repository.
    """

    model: str
    option: str
    kind: str
    name: str = ""
    revision: str = DEFAULT_REVISION

    def error(self, error: Exception) -> InputError:
        """The one-line error for a model that cannot be used."""
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        reason = reason if len(reason) <= MAX_REASON else reason[: MAX_REASON - 3] + "..."
        return InputError(
            f"{self.option}: expected {self.kind} of transformers, its name on the Hugging Face"
            f" hub or a folder, found {self.name or self.model} ({reason})"
        )


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A loaded model in eval mode on the CPU.

    Attributes:
        processor: its image processor, or its processor of images and texts.
        settings: the content of the configuration files of model and image processor, without keys
            that change no output.
        weights_digest: digest of the state dict.
    """

    model: Any
    processor: Any
    settings: list[dict[str, Any]]
    weights_digest: str

    @property
    def model_type(self) -> str:
        """transformers' name of the architecture."""
        return self.model.config.model_type


def load_pretrained(
    source: PretrainedSource, model_class: str, processor_class: str, dtype: torch.dtype
) -> Pretrained:
    """Loads a model with Auto classes of transformers, such as "AutoModelForObjectDetection".

    Raises:
        InputError: transformers is not installed; no such model, folder or file; a model for
            another task; or weights that lack tensors or are not finite.
    """
    # Otherwise transformers asks a service to convert the pickled weights of a hub repository.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    found = source.name or source.model
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            f"{source.option}: expected the package transformers for {found}, found none"
            f" ({error}); pip install '.[hf]'"
        ) from None
    if source.revision != DEFAULT_REVISION and Path(source.model).is_dir():
        raise InputError(
            f"{source.option}: expected no revision of the folder {source.model}, found"
            f" {source.revision}"
        )
    options: dict[str, Any] = {"revision": source.revision, "trust_remote_code": False}
    with one_line_errors(source):
        config = transformers.AutoConfig.from_pretrained(source.model, **options)
        # A configuration may name an implementation that would be downloaded.
        config._attn_implementation = None
        model, report = getattr(transformers, model_class).from_pretrained(
            source.model,
            config=config,
            dtype=dtype,
            weights_only=True,
            output_loading_info=True,
            # They are refused below, with their names.
            ignore_mismatched_sizes=True,
            **options,
        )
        processor = getattr(transformers, processor_class).from_pretrained(source.model, **options)
        settings = [
            transformers.PretrainedConfig.get_config_dict(source.model, revision=source.revision)[
                0
            ],
            transformers.ImageProcessingMixin.get_image_processor_dict(
                source.model, revision=source.revision
            )[0],
        ]
    for name in sorted(report["missing_keys"])[:1]:
        raise InputError(
            f"{source.option}: expected all weights of {config.model_type} in {found},"
            f" found none for {len(report['missing_keys'])} tensors, first {name}"
        )
    state = model.state_dict()
    for entry in sorted(report["mismatched_keys"])[:1]:
        # transformers 4 gives the names alone.
        name, stored = (entry, "another") if isinstance(entry, str) else (entry[0], tuple(entry[1]))
        raise InputError(
            f"{source.option}: {found}: {name}: expected shape {tuple(state[name].shape)}, as in"
            f" config.json, found {stored}"
        )
    check_finite(state, found)
    used = [_used_settings(each) for each in settings]
    return Pretrained(model.eval(), processor, used, weights_digest(state))


def _used_settings(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in settings.items()
        if key not in UNUSED_KEYS and not key.startswith("_")
    }


@contextmanager
def one_line_errors(source: PretrainedSource) -> Iterator[None]:
    """Hides transformers' messages, warnings and progress bars, and shortens its errors.

    Raises:
        InputError: the body raised an error, except one for missing memory of a GPU.
    """
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except InputError:
        raise
    # Of requests, of the operating system, of missing files, keys and types in configurations.
    except Exception as error:
        if is_out_of_memory(error):
            raise
        logger.debug(source.model, exc_info=True)
        raise source.error(error) from None
    finally:
        logging.set_verbosity(verbosity)
