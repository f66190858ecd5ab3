"""CLIP, the teacher: the only file that knows open_clip."""

from __future__ import annotations

import difflib
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from pipeline.devices import autocast
from pipeline.errors import InputError, bad_field
from pipeline.files import read_json, replacing, sha256_of_json, write_json
from pipeline.weights import load_weights, mismatch, weights_digest
from teacher_cache.world_models.tokenizer import WordTokenizer

FOLDER_CONFIG = "open_clip_config.json"
FOLDER_WEIGHTS = "open_clip_model.safetensors"
FOLDER_WORDS = "words.json"
TEXT_BATCH = 256
# Activations of a few dozen regions still fit a processor's cache; a GPU wants many.
CPU_BATCH, GPU_BATCH = 64, 256
# How open_clip answers to weights that are not what it expected.
MISFITS = (
    AssertionError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
)


@dataclass(frozen=True)
class ClipConfig:
    """Which CLIP.

    Attributes:
        model: a model name of open_clip, `hf-hub:` name, or a folder in open_clip's own layout.
        weights: a pretrained tag or a checkpoint file; None for folders and `hf-hub:` names,
            which bring their weights.
        precision: of the image tower: float32, float16, bfloat16, or auto, which is float16 on a
            GPU and float32 elsewhere.
    """

    model: str
    weights: str | None = None
    precision: str = "auto"


class ClipTeacher:
    """A frozen CLIP in eval mode, with its own preprocessing values.

    Args:
        config: which model.
        device: where to run.

    Attributes:
        device: as given.
        name: identifies the architecture: open_clip's name, or a digest of a folder's settings.
        image_size: side of the square input in pixels.
        precision: of the image tower.
        mean, std: per-channel values of the normalisation, for pixels in [0, 1].
        logit_scale: factor on cosine similarities.
        weights_digest: identifies the weights.
        batch_size: how many regions at once suit the device.

    Raises:
        InputError: no such model, tag, folder or file, or a checkpoint of another architecture.
    """

    def __init__(self, config: ClipConfig, device: torch.device) -> None:
        model, self._tokenizer = _load(config)
        self._model = model.eval().to(device)
        self.device = device
        settings = open_clip.get_model_preprocess_cfg(model)
        self.name = _name(config)
        self.image_size = _side(settings["size"], self.name)
        self.mean, self.std = tuple(settings["mean"]), tuple(settings["std"])
        self.precision = config.precision
        if self.precision == "auto":
            self.precision = "float16" if device.type == "cuda" else "float32"
        self.batch_size = GPU_BATCH if device.type == "cuda" else CPU_BATCH
        self._mean = torch.tensor(self.mean, device=device).view(3, 1, 1)
        self._std = torch.tensor(self.std, device=device).view(3, 1, 1)
        self.logit_scale = float(model.logit_scale.detach().exp())
        self.weights_digest = weights_digest(model.state_dict())

    def encode_images(self, regions: Tensor) -> np.ndarray:
        """(N, 3, S, S) uint8 RGB regions on the device -> (N, D) float32 normalised embeddings."""
        return self.encode_pixels((regions.float().div_(255) - self._mean) / self._std)

    @torch.inference_mode()
    def encode_pixels(self, pixels: Tensor) -> np.ndarray:
        """(N, 3, S, S) float32 normalised pixels -> (N, D) float32 normalised embeddings."""
        with autocast(self.device, self.precision):
            features = self._model.encode_image(pixels)
        return functional.normalize(features.float(), dim=-1).cpu().numpy()

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """N sentences -> (N, D) float32 normalised embeddings.

        Raises:
            InputError: the world's teacher does not know a word.
        """
        parts = [
            self._model.encode_text(
                self._tokenizer(list(texts[start : start + TEXT_BATCH])).to(self.device),
                normalize=True,
            )
            for start in range(0, len(texts), TEXT_BATCH)
        ]
        return torch.cat(parts).float().cpu().numpy()


def build_clip(config: dict[str, Any], generator: torch.Generator) -> open_clip.CLIP:
    """A randomly initialised CLIP from open_clip's `model_cfg` form.

    Args:
        config: `embed_dim`, `vision_cfg`, `text_cfg`.
        generator: decides the weights; torch's global generator is left as it was.
    """
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
    """Writes a model as a folder that `ClipTeacher` and open_clip's `local-dir:` open.

    Args:
        folder: where.
        model: what `build_clip` made.
        config: its `model_cfg`.
        preprocessing: open_clip's `preprocess_cfg`: mean and std.
        tokenizer: the word-level tokenizer that the model was trained with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FOLDER_CONFIG, {"model_cfg": config, "preprocess_cfg": dict(preprocessing)})
    tokenizer.save(folder / FOLDER_WORDS)
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with replacing(folder / FOLDER_WEIGHTS) as temporary:
        save_file(state, temporary)


def _load(config: ClipConfig) -> tuple[Any, Callable[[list[str]], Tensor]]:
    if Path(config.model).is_dir():
        return _from_folder(Path(config.model))
    if config.model.startswith("hf-hub:"):
        return _created(config.model, None), _tokenizer(config.model)
    if config.model not in open_clip.list_models():
        near = difflib.get_close_matches(config.model, open_clip.list_models(), n=5, cutoff=0.3)
        raise InputError(
            "--clip-model: expected a folder, hf-hub: name or model of open_clip"
            f" (such as {', '.join(near or ['ViT-B-16', 'RN50x16'])}), found {config.model}"
        )
    tags = open_clip.list_pretrained_tags_by_model(config.model)
    if config.weights is None:
        raise InputError(
            f"--clip-weights: expected a checkpoint file or a tag of {config.model}"
            f" ({', '.join(tags) or 'it has none'}), found none"
        )
    if config.weights in tags:
        return _created(config.model, config.weights), _tokenizer(config.model)
    if not Path(config.weights).is_file():
        raise InputError(
            f"--clip-weights: expected a file or a tag of {config.model}"
            f" ({', '.join(tags) or 'it has none'}), found {config.weights}"
        )
    return _created(config.model, config.weights), _tokenizer(config.model)


def _created(model: str, weights: str | None) -> Any:
    try:
        return open_clip.create_model(model, pretrained=weights, require_pretrained=True)
    except MISFITS as error:
        if weights is not None and Path(weights).is_file():
            load_weights(Path(weights))
            raise mismatch(weights, model, error) from None
        raise InputError(
            f"--clip-model: {' '.join(filter(None, [model, weights]))} cannot be fetched"
            f" ({' '.join(str(error).split())[:160]}); give a checkpoint file"
        ) from None


def _tokenizer(model: str) -> Callable[[list[str]], Tensor]:
    try:
        return open_clip.get_tokenizer(model)
    except (ImportError, OSError, ValueError) as error:
        raise InputError(
            f"--clip-model: the tokenizer of {model} cannot be loaded"
            f" ({' '.join(str(error).split())[:160]})"
        ) from None


def _from_folder(folder: Path) -> tuple[Any, Callable[[list[str]], Tensor]]:
    file = folder / FOLDER_CONFIG
    if not file.is_file():
        raise InputError(f"{folder}: expected a CLIP folder with {FOLDER_CONFIG}, found none")
    value = read_json(file)
    model_config = value.get("model_cfg") if isinstance(value, dict) else None
    if not isinstance(model_config, dict):
        raise bad_field(file, "model_cfg", "open_clip's model configuration", model_config)
    weights = folder / FOLDER_WEIGHTS
    if not weights.is_file():
        raise InputError(f"{weights}: no such weights file")
    try:
        model = open_clip.create_model(f"local-dir:{folder}", require_pretrained=True)
    except (TypeError, KeyError, ValueError) as error:
        raise bad_field(file, "model_cfg", "open_clip's model configuration", str(error)) from None
    except MISFITS as error:
        load_weights(weights)
        raise mismatch(weights, f"the model in {file}", error) from None
    words = folder / FOLDER_WORDS
    if words.is_file():
        return model, WordTokenizer.load(words)
    return model, _tokenizer(f"local-dir:{folder}")


def _name(config: ClipConfig) -> str:
    folder = Path(config.model)
    if not folder.is_dir():
        return config.model
    return f"folder {sha256_of_json(read_json(folder / FOLDER_CONFIG))[:16]}"


def _side(size: int | Sequence[int], name: str) -> int:
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise InputError(f"--clip-model: expected a model with square input, {name} takes {size}")
    return sides.pop()
