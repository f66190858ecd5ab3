"""The detector as people use it from Python."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import torch

from evaluation.hico.nms import NmsConfig, pairwise_nms
from pipeline.utils.devices import resolve_device
from pipeline.utils.errors import InputError
from pipeline.vocabulary import Vocabulary
from student.inference.images import ImageInput
from student.inference.model import InferenceModel, ModelSpec, load_inference_model
from student.inference.predict import ImageError
from student.inference.results import HOIResult, select_top

THRESHOLD, TOP, BATCH_SIZE = 0.3, 10, 8


class Detector:
    """Finds people, objects and what the people do with them.

        import eoid

        detector = eoid.Detector.open("demo/seed-0/ua/distilled")
        result = detector("photo.jpg")
        result.actions, result.scores, result.human_boxes, result.object_boxes
        result.draw().save("drawn.jpg")

    One detector may serve many threads at once, as in a web server: calls only read it and keep
    nothing. Threads of one process share its cores, so more of them are not quicker.

    Args:
        loaded: model, vocabulary and split.
        device: where it runs.
    """

    def __init__(self, loaded: InferenceModel, device: torch.device) -> None:
        self._model, self.device = loaded.to(device), device

    @classmethod
    def open(
        cls,
        path: str | Path,
        device: str = "auto",
        vocabulary: str | Path | None = None,
        split: str | Path | None = None,
        num_heads: int | None = None,
        prompts: str | Path | None = None,
    ) -> Detector:
        """Opens a run folder, a checkpoint of ours, or one in the published EoID/CDN form.

        Args:
            device: "auto" (a GPU when there is one), "cpu" or "cuda[:i]".
            vocabulary: of a published checkpoint; by default the shipped one of its sizes.
            split: what counts as unseen, a name or a TOML file; by default the run's.
            num_heads: attention heads of a published checkpoint that does not say.
            prompts: what `eoid-cache prompts` wrote about further actions, for a student that was
                trained with `--verb-head text`.

        Raises:
            InputError: nothing of the kind, no such device, a vocabulary of other sizes.
        """
        where = resolve_device(device)
        more = None if prompts is None else Path(prompts)
        return cls(
            load_inference_model(ModelSpec(Path(path), vocabulary, split, num_heads, more)), where
        )

    @property
    def vocabulary(self) -> Vocabulary:
        """What the indices in results mean."""
        return self._model.vocabulary

    @property
    def unseen(self) -> frozenset[int]:
        """The vocabulary's interactions that had no label in training."""
        return self._model.unseen

    @overload
    def __call__(
        self,
        images: ImageInput,
        *,
        threshold: float = ...,
        top: int = ...,
        batch_size: int = ...,
        nms: NmsConfig | None = ...,
    ) -> HOIResult: ...

    @overload
    def __call__(
        self,
        images: list[Any] | tuple[Any, ...],
        *,
        threshold: float = ...,
        top: int = ...,
        batch_size: int = ...,
        nms: NmsConfig | None = ...,
    ) -> list[HOIResult]: ...

    def __call__(
        self,
        images: ImageInput | list[Any] | tuple[Any, ...],
        *,
        threshold: float = THRESHOLD,
        top: int = TOP,
        batch_size: int = BATCH_SIZE,
        nms: NmsConfig | None = None,
    ) -> HOIResult | list[HOIResult]:
        """Looks at one image, or at a list of them.

        Args:
            images: a path, a PIL image, a (height, width, 3) uint8 array or a (3, height, width)
                tensor, uint8 or floating point from 0 to 1, all RGB; or a list of such in any mix
                of sizes and kinds.
            threshold: least score of an interaction.
            top: most interactions of an image.
            batch_size: most images at once; only those of one size go together.
            nms: pairwise NMS first, defaults of `--nms`: `evaluation.hico.nms.NmsConfig()`; None
                keeps interactions that name nearly the same pair and verb.

        Returns:
            What was found, for a list in its order.

        Raises:
            InputError: an image that cannot be read, or a wrong threshold.
        """
        if not isinstance(images, (list, tuple)):
            (one,) = self([images], threshold=threshold, top=top, batch_size=batch_size, nms=nms)
            return one
        found: list[HOIResult | None] = [None] * len(images)
        for index, prediction in self.stream(images, threshold, top, batch_size, nms=nms):
            if isinstance(prediction, ImageError):
                raise InputError(prediction.reason)
            found[index] = prediction
        return [one for one in found if one is not None]

    def stream(
        self,
        images: Sequence[ImageInput],
        threshold: float = THRESHOLD,
        top: int = TOP,
        batch_size: int = BATCH_SIZE,
        threads: int = 0,
        nms: NmsConfig | None = None,
    ) -> Iterator[tuple[int, HOIResult | ImageError]]:
        """Looks at many images; what cannot be read is told and does not stop the rest.

        Args:
            images, threshold, top, batch_size, nms: as when called.
            threads: that read images ahead.

        Yields:
            (place in the list, results or `ImageError`), as they come; order not kept.

        Raises:
            InputError: a wrong threshold.
        """
        if not 0 <= threshold <= 1:
            raise InputError(f"threshold: expected a score from 0 to 1, found {threshold}")
        for name, number in (("top", top), ("batch_size", batch_size)):
            if number < 1:
                raise InputError(f"{name}: expected at least 1, found {number}")
        for one in self._model.stream(images, batch_size, threads):
            if isinstance(one, ImageError):
                yield one.index, one
                continue
            kept = one.detections if nms is None else pairwise_nms(one.detections, nms)
            yield (
                one.index,
                select_top(
                    kept,
                    one.size,
                    self.vocabulary,
                    self.unseen,
                    images[one.index],
                    threshold,
                    top,
                ),
            )
