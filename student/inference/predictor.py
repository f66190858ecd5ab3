"""`Detector`, the Python interface of inference."""

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
from student.inference.predict import UnreadableImage
from student.inference.results import HOIResult, select_top

THRESHOLD, TOP, BATCH_SIZE = 0.3, 10, 8


class Detector:
    """Detects human-object interactions in images.

        import eoid

        detector = eoid.Detector.open("demo/seed-0/ua/distilled")
        result = detector("photo.jpg")
        result.actions, result.scores, result.human_boxes, result.object_boxes
        result.draw().save("drawn.jpg")

    A detector can be called from several threads at once, since calls do not change it. Threads of
    a process share its cores, so that they gain no speed.

    Args:
        loaded: model, vocabulary and split.
        device: device to run the model on.
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
        """Opens a detector.

        Args:
            path: a run folder, a student checkpoint, or one in the published EoID/CDN form.
            device: "auto" (a GPU where one is available), "cpu" or "cuda[:i]".
            vocabulary: vocabulary of a published checkpoint, a shipped name or a file; None takes
                the shipped vocabulary with its numbers of classes.
            split: name or TOML file of the split that defines "unseen"; None takes the run's.
            num_heads: attention heads of a published checkpoint whose `args` do not name them.
            prompts: prompts file of `eoid-cache prompts` with further actions, for a student that
                was trained with `--verb-head text`.

        Raises:
            InputError: the file is not a detector's checkpoint, the device does not exist, or
                vocabulary, split or prompts do not fit the checkpoint.
        """
        prompts_file = None if prompts is None else Path(prompts)
        spec = ModelSpec(Path(path), vocabulary, split, num_heads, prompts_file)
        resolved = resolve_device(device)
        return cls(load_inference_model(spec), resolved)

    @property
    def vocabulary(self) -> Vocabulary:
        """Names of the indices in results."""
        return self._model.vocabulary

    @property
    def unseen(self) -> frozenset[int]:
        """Interactions of the vocabulary without a label in training."""
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
        """Detects interactions in one image or in a list of images.

        Args:
            images: a path, a PIL image, a (height, width, 3) uint8 array, or a (3, height, width)
                tensor of uint8 or of floating point from 0 to 1, all RGB; or a list of these, in
                any mix of sizes and types.
            threshold: minimum score of an interaction.
            top: maximum number of interactions per image.
            batch_size: maximum number of images per batch; only images of one size share a batch.
            nms: settings of a pairwise NMS, `evaluation.hico.nms.NmsConfig()` for those of
                `eoid-predict --nms`; None runs none.

        Returns:
            One `HOIResult`; for a list, a list in the same order.

        Raises:
            InputError: an image cannot be read, or an argument is out of range.
        """
        if not isinstance(images, (list, tuple)):
            (result,) = self([images], threshold=threshold, top=top, batch_size=batch_size, nms=nms)
            return result
        results: dict[int, HOIResult] = {}
        for index, prediction in self.stream(images, threshold, top, batch_size, nms=nms):
            if isinstance(prediction, UnreadableImage):
                raise InputError(prediction.reason)
            results[index] = prediction
        return [results[index] for index in range(len(images))]

    def stream(
        self,
        images: Sequence[ImageInput],
        threshold: float = THRESHOLD,
        top: int = TOP,
        batch_size: int = BATCH_SIZE,
        threads: int = 0,
        nms: NmsConfig | None = None,
    ) -> Iterator[tuple[int, HOIResult | UnreadableImage]]:
        """Detects interactions in many images; an unreadable image does not end the others.

        Args:
            images, threshold, top, batch_size, nms: see `__call__`.
            threads: number of threads that read images ahead; 0 reads in the calling thread.

        Yields:
            (index in the list, result or `UnreadableImage`), in the order of the batches.

        Raises:
            InputError: an argument is out of range.
        """
        if not 0 <= threshold <= 1:
            raise InputError(f"threshold: expected a score from 0 to 1, found {threshold}")
        for name, number in (("top", top), ("batch_size", batch_size)):
            if number < 1:
                raise InputError(f"{name}: expected at least 1, found {number}")
        for prediction in self._model.stream(images, batch_size, threads):
            index = prediction.index
            if isinstance(prediction, UnreadableImage):
                yield index, prediction
                continue
            kept = prediction.detections
            if nms is not None:
                kept = pairwise_nms(kept, nms)
            size, image = prediction.size, images[index]
            yield (
                index,
                select_top(kept, size, self.vocabulary, self.unseen, image, threshold, top),
            )
