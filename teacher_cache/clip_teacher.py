"""CLIP, the teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from pipeline.devices import autocast, start_download
from pipeline.errors import InputError, bad_field
from pipeline.files import replacing, write_json
from pipeline.weights import check_finite, weights_digest
from teacher_cache.clip_models import (
    FOLDER_CONFIG,
    FOLDER_WEIGHTS,
    FOLDER_WORDS,
    ClipConfig,
    open_clip_model,
)
from teacher_cache.regions import FILTERS
from teacher_cache.world_models.tokenizer import WordTokenizer

TEXT_BATCH = 256
# Activations of a few dozen regions still fit a processor's cache; a GPU wants many.
CPU_BATCH, GPU_BATCH = 64, 256


class ClipTeacher:
    """A frozen CLIP in eval mode, with its own preprocessing values.

    Args:
        config: which model.
        device: where to run.

    Attributes:
        device: as given.
        name: identifies architecture and tokenizer: open_clip's name, or a digest of a folder's
            settings and words.
        quick_gelu: whether it computes GELU as OpenAI's models do.
        image_size: side of the square input in pixels.
        precision: of the image tower.
        interpolation: of the resize, "bicubic" or "bilinear".
        mean, std: per-channel values of the normalisation, for pixels in [0, 1].
        logit_scale: factor on cosine similarities.
        weights_digest: identifies the weights.
        batch_size: how many regions at once suit the device.

    Raises:
        InputError: no such model, tag, folder or file, a checkpoint of another architecture or of
            a training that diverged, or a model with unusual input.
    """

    def __init__(self, config: ClipConfig, device: torch.device) -> None:
        opened = open_clip_model(config)
        check_finite(opened.model.state_dict(), config.weights or config.model)
        self.name, self.quick_gelu = opened.name, opened.quick_gelu
        # On the host, where the weights still are.
        self.weights_digest = weights_digest(opened.model.state_dict())
        self.logit_scale = float(opened.model.logit_scale.detach().exp())
        self._model, self._tokenizer = opened.model.eval().to(device), opened.tokenizer
        self.device = device
        self.precision = resolve_precision(config.precision, device.type)
        settings = open_clip.get_model_preprocess_cfg(opened.model)
        self.image_size = _side(settings["size"], config.model)
        self.interpolation = _interpolation(settings.get("interpolation"), config.model)
        self.mean = _three(settings, "mean", config.model)
        self.std = _three(settings, "std", config.model)
        self.batch_size = GPU_BATCH if device.type == "cuda" else CPU_BATCH
        self._mean = torch.tensor(self.mean, device=device).view(3, 1, 1)
        self._std = torch.tensor(self.std, device=device).view(3, 1, 1)

    def encode_images(self, regions: Tensor) -> np.ndarray:
        """(N, 3, S, S) uint8 RGB regions on the device -> (N, D) float32 normalised embeddings;
        see `start_encoding`."""
        return self.start_encoding(regions)()

    @torch.inference_mode()
    def start_encoding(self, regions: Tensor) -> Callable[[], np.ndarray]:
        """Encodes (N, 3, S, S) uint8 RGB regions without waiting for the device.

        Returns:
            Waits and gives (N, D) float32 normalised embeddings. Where some are not finite, as
            float16 ends at 65,504, the batch is encoded again in float32; what is not finite then
            either is up to the caller.
        """
        arrived = start_download(self._encode(self._normalised(regions), self.precision))

        @torch.inference_mode()
        def embeddings() -> np.ndarray:
            found = arrived().numpy().copy()
            if self.precision != "float32" and not np.isfinite(found).all():
                found = self._encode(self._normalised(regions), "float32").cpu().numpy()
            return found

        return embeddings

    @torch.inference_mode()
    def encode_pixels(self, pixels: Tensor) -> np.ndarray:
        """(N, 3, S, S) float32 normalised pixels -> (N, D) float32 normalised embeddings."""
        return self._encode(pixels, self.precision).cpu().numpy()

    def _normalised(self, regions: Tensor) -> Tensor:
        return (regions.float().div_(255) - self._mean) / self._std

    def _encode(self, pixels: Tensor, precision: str) -> Tensor:
        with autocast(self.device, precision):
            features = self._model.encode_image(pixels)
        return functional.normalize(features.float(), dim=-1)

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


def _side(size: Any, name: str) -> int:
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise InputError(f"--clip-model: expected a model with square input, {name} takes {size}")
    return sides.pop()


def _interpolation(value: Any, name: str) -> str:
    # "random" is for training; open_clip takes bicubic instead when it asks.
    kind = "bicubic" if value in (None, "random") else value
    if kind not in FILTERS:
        raise bad_field(name, "interpolation", " or ".join(FILTERS), value)
    return kind


def _three(settings: dict[str, Any], key: str, name: str) -> tuple[float, ...]:
    values: Any = settings.get(key)
    good = isinstance(values, (list, tuple)) and len(values) == 3
    if not good or not all(isinstance(value, (int, float)) for value in values):
        raise bad_field(name, f"preprocess_cfg.{key}", "three numbers", values)
    if key == "std" and min(values) <= 0:
        raise bad_field(name, f"preprocess_cfg.{key}", "three numbers above 0", values)
    return tuple(float(value) for value in values)


def resolve_precision(precision: str, device: str) -> str:
    """What `auto` means for the image tower on a device, "cpu" or "cuda"."""
    if precision != "auto":
        return precision
    return "float16" if device.startswith("cuda") else "float32"
