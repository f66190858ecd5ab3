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
from student.inference.images import Source
from student.inference.model import ModelSource, ReadyModel, ready_model
from student.inference.predict import Unreadable
from student.inference.results import Findings, findings

THRESHOLD, TOP, BATCH_SIZE = 0.3, 10, 8


class Detector:
    """Finds people, objects and what the people do with them.

        from student import Detector

        detector = Detector.open("demo/seed-0/ua/distilled")
        found = detector("photo.jpg")
        found.actions, found.scores, found.human_boxes, found.object_boxes
        found.draw().save("drawn.jpg")

    One detector may serve many threads at once, as in a web server: calls only read it and keep
    nothing. Threads of one process share its cores, so more of them are not quicker.

    Args:
        opened: model, vocabulary and split.
        device: where it runs.
    """

    def __init__(self, opened: ReadyModel, device: torch.device) -> None:
        self._opened, self.device = opened.to(device), device

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
        return cls(ready_model(ModelSource(Path(path), vocabulary, split, num_heads, more)), where)

    @property
    def vocabulary(self) -> Vocabulary:
        """What the indices in findings mean."""
        return self._opened.vocabulary

    @property
    def unseen(self) -> frozenset[int]:
        """The vocabulary's interactions that had no label in training."""
        return self._opened.unseen

    @overload
    def __call__(
        self,
        pictures: Source,
        *,
        threshold: float = ...,
        top: int = ...,
        batch_size: int = ...,
        nms: NmsConfig | None = ...,
    ) -> Findings: ...

    @overload
    def __call__(
        self,
        pictures: list[Any] | tuple[Any, ...],
        *,
        threshold: float = ...,
        top: int = ...,
        batch_size: int = ...,
        nms: NmsConfig | None = ...,
    ) -> list[Findings]: ...

    def __call__(
        self,
        pictures: Source | list[Any] | tuple[Any, ...],
        *,
        threshold: float = THRESHOLD,
        top: int = TOP,
        batch_size: int = BATCH_SIZE,
        nms: NmsConfig | None = None,
    ) -> Findings | list[Findings]:
        """Looks at one picture, or at a list of them.

        Args:
            pictures: a path, a PIL image, a (height, width, 3) uint8 array or a (3, height, width)
                tensor, uint8 or floating point from 0 to 1, all RGB; or a list of such in any mix
                of sizes and kinds.
            threshold: least score of an interaction.
            top: most interactions of a picture.
            batch_size: most pictures at once; only those of one size go together.
            nms: pairwise NMS first, defaults of `--nms`: `evaluation.hico.nms.NmsConfig()`; None
                keeps interactions that name nearly the same pair and verb.

        Returns:
            What was found, for a list in its order.

        Raises:
            InputError: a picture that cannot be read, or a wrong threshold.
        """
        if not isinstance(pictures, (list, tuple)):
            (one,) = self([pictures], threshold=threshold, top=top, batch_size=batch_size, nms=nms)
            return one
        found: list[Findings | None] = [None] * len(pictures)
        for index, looked in self.stream(pictures, threshold, top, batch_size, nms=nms):
            if isinstance(looked, Unreadable):
                raise InputError(looked.reason)
            found[index] = looked
        return [one for one in found if one is not None]

    def stream(
        self,
        pictures: Sequence[Source],
        threshold: float = THRESHOLD,
        top: int = TOP,
        batch_size: int = BATCH_SIZE,
        threads: int = 0,
        nms: NmsConfig | None = None,
    ) -> Iterator[tuple[int, Findings | Unreadable]]:
        """Looks at many pictures; what cannot be read is told and does not stop the rest.

        Args:
            pictures, threshold, top, batch_size, nms: as when called.
            threads: that read pictures ahead.

        Yields:
            (place in the list, findings or `Unreadable`), as they come; order not kept.

        Raises:
            InputError: a wrong threshold.
        """
        if not 0 <= threshold <= 1:
            raise InputError(f"threshold: expected a score from 0 to 1, found {threshold}")
        for name, number in (("top", top), ("batch_size", batch_size)):
            if number < 1:
                raise InputError(f"{name}: expected at least 1, found {number}")
        for one in self._opened.stream(pictures, batch_size, threads):
            if isinstance(one, Unreadable):
                yield one.index, one
                continue
            kept = one.detections if nms is None else pairwise_nms(one.detections, nms)
            yield (
                one.index,
                findings(
                    kept,
                    one.size,
                    self.vocabulary,
                    self.unseen,
                    pictures[one.index],
                    threshold,
                    top,
                ),
            )
