"""`ClipTeacher`: a frozen CLIP model of open_clip.

Models are loaded by name with a pretrained tag or a checkpoint file, from the Hugging Face hub, or
from a folder in open_clip's layout, such as that of the toy dataset's teacher.
"""

from __future__ import annotations

import difflib
import logging
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import open_clip
import torch
from msgspec import Meta, Struct
from open_clip.factory import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict
from torch import Tensor, nn
from torch.nn import functional

from pipeline.toy import TEACHER, TOY
from pipeline.utils.devices import autocast, copy_to_host_async
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import sha256_of_file, sha256_of_json, write_json
from pipeline.utils.progress import track
from pipeline.utils.schema import convert, read_json_as
from pipeline.utils.weights import (
    architecture_error,
    check_finite,
    load_weights,
    save_half,
    weights_digest,
)
from teacher_cache.teachers.text_image import TextImageTeacher
from teacher_cache.teachers.word_tokenizer import WordTokenizer

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
# Further names of weights files in folders from the hub.
OTHER_WEIGHTS_FILES = ("open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
TOKENIZER_FILE = "words.json"
HUB_PREFIX = "hf-hub:"
# Integers that OpenAI's TorchScript archives contain in their state dicts.
OPENAI_METADATA_KEYS = ("input_resolution", "context_length", "vocab_size")
MODEL_CONFIG = "open_clip's model configuration"
PREPROCESSING_KEYS = ("mean", "std", "interpolation", "resize_mode")
Positive = Annotated[float, Meta(gt=0)]
# Sentences per batch of the text encoder.
TEXT_BATCH_SIZE = 256


class _Preprocessing(Struct):
    """open_clip's `preprocess_cfg`; mean and std are for pixels in [0, 1]."""

    size: int | list[int]
    mean: Annotated[tuple[float, float, float], Meta(description="three numbers")]
    std: Annotated[tuple[Positive, Positive, Positive], Meta(description="three numbers above 0")]
    interpolation: Literal["bicubic", "bilinear", "random"] | None = None


class _FolderConfig(Struct):
    """`open_clip_config.json`."""

    model_cfg: Annotated[dict[str, Any], Meta(description=MODEL_CONFIG)]


@dataclass(frozen=True)
class ClipConfig:
    """Which CLIP model to load.

    Attributes:
        model: a model name of open_clip, an `hf-hub:` name, a folder in open_clip's layout, or
            "toy", the toy dataset's teacher.
        weights: a pretrained tag or a checkpoint file; None for "toy", folders and `hf-hub:` names,
            which contain their weights.
        precision: precision of the image encoder: "float32", "float16", "bfloat16", or "auto",
            which is float16 on a GPU and float32 elsewhere.
    """

    model: str
    weights: str | None = None
    precision: str = "auto"


@dataclass(frozen=True, eq=False)
class LoadedClip:
    """A model of open_clip on the CPU, and its tokenizer.

    Attributes:
        name: identifies architecture and tokenizer: open_clip's name, or a digest of a folder's
            configuration and tokenizer files.
        quick_gelu: whether it uses OpenAI's approximation of GELU, x * sigmoid(1.702 x). The
            weights do not tell, and with the other one the embeddings would be wrong.
    """

    name: str
    model: Any
    tokenizer: Callable[[list[str]], Tensor]
    quick_gelu: bool


def load_clip(config: ClipConfig) -> LoadedClip:
    """Loads a model and its tokenizer on the CPU.

    Raises:
        InputError: no such model, tag, folder or file, or a checkpoint of another architecture.
    """
    folder = TEACHER if config.model == TOY else Path(config.model)
    if config.weights is not None and (folder.is_dir() or config.model.startswith(HUB_PREFIX)):
        raise InputError(
            f"--clip-weights: expected none, as {config.model} contains weights,"
            f" found {config.weights}"
        )
    if folder.is_dir():
        return _load_folder(folder)
    if config.model.startswith(HUB_PREFIX):
        model = _create_pretrained(config.model, None)
        return LoadedClip(
            config.model, model, _load_tokenizer(config.model), _has_quick_gelu(config.model)
        )
    # OpenAI writes ViT-B/32 where open_clip writes ViT-B-32.
    return _load_by_name(config.model.replace("/", "-"), config)


def _load_by_name(name: str, config: ClipConfig) -> LoadedClip:
    names = open_clip.list_models()
    if name not in names:
        similar = difflib.get_close_matches(name, names, n=5, cutoff=0.3)
        raise InputError(
            f"--clip-model: expected a folder, {TOY}, {HUB_PREFIX} name or model of open_clip"
            f" (such as {', '.join(similar or ['ViT-B-16', 'RN50x16'])}), found {config.model}"
        )
    published = {
        tag: open_clip.get_pretrained_cfg(name, tag)
        for tag in open_clip.list_pretrained_tags_by_model(name)
    }
    weights = config.weights
    tag = (weights or "").lower().replace("-", "_")
    if weights is None or (tag not in published and not Path(weights).is_file()):
        raise InputError(
            f"--clip-weights: expected a checkpoint file or a tag of {name}"
            f" ({', '.join(published) or 'it has none'}), found {weights or 'none'}"
        )
    # open_clip only warns where weights were trained with the other GELU; the configuration of
    # their tag says which one they need.
    if tag in published:
        quick_gelu = bool(published[tag].get("quick_gelu"))
        model = _create_pretrained(name, tag, force_quick_gelu=quick_gelu)
    else:
        state = load_weights(Path(weights))
        # A file does not say. OpenAI's archives need QuickGELU; other files are assumed to need it
        # where all published weights of the model do.
        quick_gelu = set(OPENAI_METADATA_KEYS) <= state.keys() or (
            bool(published) and all(entry.get("quick_gelu") for entry in published.values())
        )
        options = {
            "force_quick_gelu": quick_gelu,
            "force_preprocess_cfg": _common_preprocessing(published),
        }
        model = _load_state(_create_empty(name, **options), state, weights, name)
    return LoadedClip(name, model, _load_tokenizer(name), quick_gelu or _has_quick_gelu(name))


def _has_quick_gelu(name: str) -> bool:
    return bool(open_clip.get_model_config(name).get("quick_gelu"))


def _load_folder(folder: Path) -> LoadedClip:
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise InputError(f"{folder}: expected a CLIP folder with {CONFIG_FILE}, found none")
    settings = read_json_as(file, _FolderConfig).model_cfg
    names = (WEIGHTS_FILE, *OTHER_WEIGHTS_FILES)
    weights_files = [folder / name for name in names if (folder / name).is_file()]
    if not weights_files:
        raise InputError(f"{folder / WEIGHTS_FILE}: no such weights file")
    try:
        model = _create_empty(f"local-dir:{folder}")
    except Exception as error:
        found = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise bad_field(file, "model_cfg", MODEL_CONFIG, found) from None
    weights = weights_files[0]
    model = _load_state(model, load_weights(weights), weights, f"the model in {file}")
    words = folder / TOKENIZER_FILE
    tokenizer = (
        WordTokenizer.load(words) if words.is_file() else _load_tokenizer(f"local-dir:{folder}")
    )
    # The configuration, and the tokenizer files that folders from the hub contain.
    files = sorted(each for kind in ("json", "txt", "model") for each in folder.glob(f"*.{kind}"))
    name = f"folder {sha256_of_json([[each.name, sha256_of_file(each)] for each in files])[:16]}"
    return LoadedClip(name, model, tokenizer, bool(settings.get("quick_gelu")))


def _create_pretrained(name: str, tag: str | None, **options: Any) -> Any:
    try:
        with _silence_logging():
            return open_clip.create_model(name, pretrained=tag, require_pretrained=True, **options)
    except Exception as error:
        raise InputError(
            f"--clip-model: {' '.join(filter(None, [name, tag]))} cannot be downloaded"
            f" ({_error_summary(error)}); give a checkpoint file or a folder"
        ) from None


def _create_empty(name: str, **options: Any) -> Any:
    """The architecture with random weights."""
    with _silence_logging():
        return open_clip.create_model(name, load_weights=False, pretrained_text=False, **options)


def _load_state(model: Any, state: dict[str, Tensor], file: object, architecture: str) -> Any:
    """Loads a state dict, in any form that open_clip converts, strictly into `model`.

    Unlike open_clip's `load_checkpoint` it does not interpolate position embeddings: those of
    another input size belong to another architecture.

    Raises:
        InputError: the checkpoint is of another architecture.
    """
    state = {name: value for name, value in state.items() if name not in OPENAI_METADATA_KEYS}
    try:
        state = convert_state_dict(model, state)
        if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
            state = convert_to_custom_text_state_dict(state)
        # Scalars in some checkpoints, vectors of one element in others.
        for name in ("logit_scale", "logit_bias"):
            if name in state and getattr(model, name, None) is not None:
                state[name] = state[name].reshape(getattr(model, name).shape)
        model.load_state_dict(state)
    except Exception as error:
        raise architecture_error(file, architecture, error) from None
    return model


def _load_tokenizer(model: str) -> Callable[[list[str]], Tensor]:
    try:
        with _silence_logging():
            return open_clip.get_tokenizer(model)
    except Exception as error:
        raise InputError(
            f"--clip-model: the tokenizer of {model} cannot be loaded ({_error_summary(error)})"
        ) from None


def _error_summary(error: Exception) -> str:
    """One line about an error, without what open_clip and huggingface_hub put before it."""
    text = str(error).rpartition("Last error: ")[2]
    return textwrap.shorten(text, 160, placeholder=" ...")


def _common_preprocessing(published: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The preprocessing values that all published weights of a model have in common.

    They are used for checkpoint files, which contain no preprocessing configuration.
    """
    entries = list(published.values())
    return {
        key: entries[0][key]
        for key in PREPROCESSING_KEYS
        if entries and all(entry.get(key) == entries[0].get(key, ()) for entry in entries)
    }


@contextmanager
def _silence_logging() -> Iterator[None]:
    """Suppresses open_clip's log messages, warnings included."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


class ClipTeacher(TextImageTeacher):
    """A frozen CLIP in eval mode, with the preprocessing values that belong to its weights.

    Attributes:
        name, quick_gelu: see `LoadedClip`.
        image_size: side of the square input in pixels.
        precision: precision of the image encoder.
        interpolation: interpolation of the resize, "bicubic" or "bilinear".
        mean, std: per-channel values of the normalisation, for pixels in [0, 1].
        weights_digest: digest of the state dict.

    Raises:
        InputError: no such model, tag, folder or file, a checkpoint of another architecture or with
            values that are not finite, or a model whose input is not square.
    """

    def __init__(self, config: ClipConfig, device: torch.device) -> None:
        super().__init__(device)
        loaded = load_clip(config)
        check_finite(loaded.model.state_dict(), config.weights or config.model)
        self.name, self.quick_gelu = loaded.name, loaded.quick_gelu
        # Computed while the weights are still on the host.
        self.weights_digest = weights_digest(loaded.model.state_dict())
        self.logit_scale = float(loaded.model.logit_scale.detach().exp())
        self._model, self._tokenizer = loaded.model.eval().to(device), loaded.tokenizer
        self.precision = resolve_precision(config.precision, device.type)
        values = open_clip.get_model_preprocess_cfg(loaded.model)
        preprocessing = convert(values, _Preprocessing, config.model, "preprocess_cfg")
        self.image_size = _square_size(preprocessing.size, config.model)
        # "random" is for training; open_clip's own transform for inference then uses bicubic.
        is_bilinear = preprocessing.interpolation == "bilinear"
        self.interpolation = "bilinear" if is_bilinear else "bicubic"
        self.mean, self.std = preprocessing.mean, preprocessing.std
        self._mean = torch.tensor(self.mean, device=device).view(3, 1, 1)
        self._std = torch.tensor(self.std, device=device).view(3, 1, 1)

    @classmethod
    def from_settings(cls, settings: Mapping[str, str], device: torch.device) -> ClipTeacher:
        """The model with the fields of a `ClipConfig`."""
        return cls(ClipConfig(**settings), device)

    def encode_images(self, regions: Tensor) -> np.ndarray:
        """(N, 3, S, S) uint8 RGB regions on the device -> (N, D) float32 normalised embeddings.

        The embeddings may not be finite; see `encode_images_async`.
        """
        return self.encode_images_async(regions)()

    @torch.inference_mode()
    def encode_images_async(self, regions: Tensor) -> Callable[[], np.ndarray]:
        """Starts encoding (N, 3, S, S) uint8 RGB regions without waiting for the device.

        Returns:
            A function that waits and returns (N, D) float32 normalised embeddings. If some of them
            are not finite, because activations exceed float16's maximum of 65,504, it encodes the
            batch again in float32. The caller has to check that the result is finite.
        """
        wait_for_host = copy_to_host_async(self._encode(self._normalise(regions), self.precision))

        @torch.inference_mode()
        def get_embeddings() -> np.ndarray:
            embeddings = wait_for_host().numpy().copy()
            if self.precision != "float32" and not np.isfinite(embeddings).all():
                embeddings = self._encode(self._normalise(regions), "float32").cpu().numpy()
            return embeddings

        return get_embeddings

    def fingerprint_parts(self) -> dict[str, Any]:
        """What identifies the teacher, with the names that caches had before there were others."""
        return {
            "clip.model": self.name,
            "clip.weights": self.weights_digest,
            "clip.quick_gelu": self.quick_gelu,
            "clip.image_size": self.image_size,
            "clip.interpolation": self.interpolation,
            "clip.precision": self.precision,
            "clip.mean": list(self.mean),
            "clip.std": list(self.std),
        }

    def _normalise(self, regions: Tensor) -> Tensor:
        return (regions.float().div_(255) - self._mean) / self._std

    def _encode(self, pixels: Tensor, precision: str) -> Tensor:
        with autocast(self.device, precision):
            features = self._model.encode_image(pixels)
        return functional.normalize(features.float(), dim=-1)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """N sentences -> (N, D) float32 normalised embeddings.

        Raises:
            InputError: the toy teacher's tokenizer does not know a word.
        """
        starts = range(0, len(texts), TEXT_BATCH_SIZE)
        parts = [
            self._model.encode_text(
                self._tokenizer(list(texts[start : start + TEXT_BATCH_SIZE])).to(self.device),
                normalize=True,
            )
            for start in track(starts, len(starts), "Encoding sentences", "batches", brief=True)
        ]
        return torch.cat(parts).float().cpu().numpy()


def build_clip(config: dict[str, Any], generator: torch.Generator) -> open_clip.CLIP:
    """A randomly initialised CLIP of open_clip's `model_cfg`.

    `generator` determines the weights; torch's global generator is not advanced.
    """
    # open_clip initialises from torch's global generator only.
    seed = int(torch.randint(2**62, (1,), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return open_clip.CLIP(**config)


def save_clip(
    folder: Path,
    model: nn.Module,
    config: dict[str, Any],
    preprocessing: dict[str, Any],
    tokenizer: WordTokenizer,
) -> None:
    """Writes a model of `build_clip` as a folder that `ClipTeacher` and open_clip load.

    The weights are stored in half precision.

    Args:
        config, preprocessing: open_clip's `model_cfg` and `preprocess_cfg` (mean and std).
        tokenizer: the word-level tokenizer that the model was trained with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG_FILE, {"model_cfg": config, "preprocess_cfg": dict(preprocessing)})
    tokenizer.save(folder / TOKENIZER_FILE)
    save_half(folder / WEIGHTS_FILE, model.state_dict())


def _square_size(size: Any, name: str) -> int:
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise InputError(f"--clip-model: expected a model with square input, {name} takes {size}")
    return sides.pop()


def resolve_precision(precision: str, device: str) -> str:
    """Replaces "auto" by the image encoder's precision on a device ("cpu" or "cuda[:i]")."""
    if precision != "auto":
        return precision
    return "float16" if device.startswith("cuda") else "float32"
