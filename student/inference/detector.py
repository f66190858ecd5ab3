"""`Detector`, the Python interface of inference."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

from pipeline.datasets.dataset import open_dataset
from pipeline.splits import Split, load_split
from pipeline.utils.devices import resolve_device
from pipeline.utils.errors import InputError
from pipeline.vocabulary import Vocabulary, load_vocabulary
from student.inference.batch_predictor import BatchPredictor, Prediction, UnreadableImage
from student.inference.images import ImageInput
from student.inference.postprocess import SelectionConfig
from student.inference.results import HOIResult, build_result
from student.weights.load import load_student
from student.weights.zoo import find_checkpoint

BATCH_SIZE = 8


@dataclass(frozen=True)
class DetectorSource:
    """What `Detector.open` opens a detector from, for processes that open the same one.

    Attributes:
        path, device, vocabulary, split, num_heads, prompts: see `Detector.open`.
        dataset: a dataset folder, whose vocabulary is taken if `vocabulary` is None.
    """

    path: Path | str
    device: str = "auto"
    vocabulary: str | None = None
    split: str | None = None
    num_heads: int | None = None
    prompts: Path | None = None
    dataset: Path | None = None

    def open(self, device: str | None = None) -> Detector:
        """Opens the detector, on `device` if it is given.

        Raises:
            InputError: see `Detector.open`.
        """
        names: str | Vocabulary | None = self.vocabulary
        if names is None and self.dataset is not None:
            names = open_dataset(self.dataset).vocabulary
        return Detector.open(
            self.path, device or self.device, names, self.split, self.num_heads, self.prompts
        )

    def absolute(self) -> DetectorSource:
        """The same source with absolute paths, for processes with other working folders."""
        return replace(
            self,
            path=find_checkpoint(self.path).absolute(),
            vocabulary=_absolute_file(self.vocabulary),
            split=_absolute_file(self.split),
            prompts=self.prompts and self.prompts.absolute(),
            dataset=self.dataset and self.dataset.absolute(),
        )


def _absolute_file(name: str | None) -> str | None:
    """The absolute path of an existing file; other names unchanged, also those of folders."""
    return os.path.abspath(name) if name is not None and os.path.isfile(name) else name


class Detector:
    """Detects human-object interactions in images::

        import eoid

        detector = eoid.Detector.open("demo/seed-0/ua/distilled")
        result = detector("photo.jpg")
        result.actions, result.scores, result.human_boxes, result.object_boxes
        result.draw().save("drawn.jpg")

    A detector can be called from several threads at once, since calls do not change it. Threads of
    a process share its cores, so that they gain no speed.

    Attributes:
        predictor: the model with its settings, on its device.
        file: the checkpoint.
        split: the split that defines "unseen"; None where it is unknown.
        prompts: the prompts file of added actions and objects, None without.
        vocabulary: names of the indices in results.
        unseen: interactions of the vocabulary without a label in training; empty where the split is
            unknown.
    """

    def __init__(
        self,
        predictor: BatchPredictor,
        file: Path,
        split: Split | None,
        prompts: Path | None = None,
    ) -> None:
        self.predictor, self.file, self.split, self.prompts = predictor, file, split, prompts
        self.vocabulary = predictor.vocabulary
        self.unseen = frozenset(split.unseen if split else ())

    def __repr__(self) -> str:
        config, vocabulary = self.predictor.model.config, self.vocabulary
        return (
            f"Detector({str(self.file)!r}: {config.backbone}, {config.num_queries} queries of type"
            f" {config.queries}, verb head {config.verb_head}; vocabulary {vocabulary.name},"
            f" {vocabulary.num_verbs} verbs, {vocabulary.num_objects} objects; on"
            f" {next(self.predictor.model.parameters()).device})"
        )

    @classmethod
    def open(
        cls,
        path: str | Path,
        device: str = "auto",
        vocabulary: str | Path | Vocabulary | None = None,
        split: str | Path | None = None,
        num_heads: int | None = None,
        prompts: str | Path | None = None,
    ) -> Detector:
        """Opens a detector.

        Args:
            path: a run folder, a student checkpoint, one in the published EoID/CDN form, or the
                name of weights of the package, "toy" or "toy-text".
            device: "auto" (a GPU where one is available), "cpu" or "cuda[:i]".
            vocabulary: vocabulary of a published checkpoint, a shipped name or a file; None takes
                the shipped vocabulary with its numbers of classes.
            split: name or TOML file of the split that defines "unseen"; None takes the run's.
            num_heads: attention heads of a published checkpoint whose `args` do not name them.
            prompts: prompts file of `eoid-cache prompts` with further actions or objects, for a
                student that was trained with `--verb-head text` or `--object-head text`.

        Raises:
            InputError: the file is not a detector's checkpoint, the device does not exist, or
                vocabulary, split or prompts do not fit the checkpoint.
        """
        file, resolved = find_checkpoint(path), resolve_device(device)
        if isinstance(vocabulary, (str, Path)):
            vocabulary = load_vocabulary(vocabulary)
        prompts = None if prompts is None else Path(prompts)
        loaded = load_student(file, vocabulary, num_heads, prompts)
        used_split = None if loaded.is_published else loaded.split
        if split is not None:
            used_split = load_split(loaded.vocabulary, split)
        predictor = BatchPredictor(loaded.model, loaded.vocabulary, loaded.recipe.train)
        return cls(predictor.to(resolved), file, used_split, prompts)

    @property
    def limits(self) -> str:
        """What a user has to know about the training data; "" for nothing."""
        is_toy = self.vocabulary.name == "toy"
        return "it was trained on drawn images and finds nothing in photographs" if is_toy else ""

    @overload
    def __call__(self, images: ImageInput, **options: Any) -> HOIResult: ...

    @overload
    def __call__(self, images: list[Any] | tuple[Any, ...], **options: Any) -> list[HOIResult]: ...

    def __call__(
        self, images: Any, batch_size: int = BATCH_SIZE, **selection: Any
    ) -> HOIResult | list[HOIResult]:
        """Detects interactions in one image or in a list of images.

        Args:
            images: a path, a PIL image, a (height, width, 3) uint8 array, or a (3, height, width)
                tensor of uint8 or of floating point from 0 to 1, all RGB; or a list of these, in
                any mix of sizes and types.
            batch_size: maximum number of images per batch; only images of one size share a batch.
            selection: `threshold` (0.3), `top` (10) and `nms` (None), see `SelectionConfig`;
                `evaluation.hico.nms.NmsConfig()` has the settings of `eoid-predict --nms`.
                `no_interaction=True` also gives pairs of the verb `no_interaction`, which are left
                out otherwise.

        Returns:
            One `HOIResult`; for a list, a list in the same order.

        Raises:
            InputError: an image cannot be read, or an argument is out of range.
        """
        if not isinstance(images, (list, tuple)):
            return self([images], batch_size=batch_size, **selection)[0]
        results: dict[int, HOIResult] = {}
        for index, prediction in self.stream(images, SelectionConfig(**selection), batch_size):
            if isinstance(prediction, UnreadableImage):
                raise InputError(prediction.reason)
            results[index] = prediction
        return [results[index] for index in range(len(images))]

    def stream(
        self,
        images: Sequence[ImageInput],
        selection: SelectionConfig,
        batch_size: int = BATCH_SIZE,
        threads: int = 0,
    ) -> Iterator[tuple[int, HOIResult | UnreadableImage]]:
        """Detects interactions in many images; an unreadable image does not end the others.

        Args:
            images, batch_size: see `__call__`.
            selection: which detections the results contain.
            threads: number of threads that read images ahead; 0 reads in the calling thread.

        Yields:
            (index in the list, result or `UnreadableImage`), in the order of the batches.

        Raises:
            InputError: the batch size is below 1.
        """
        if batch_size < 1:
            raise InputError(f"batch_size: expected at least 1, found {batch_size}")
        for prediction in self.predictor.stream(images, batch_size, threads):
            index = prediction.index
            if isinstance(prediction, UnreadableImage):
                yield index, prediction
            else:
                yield index, self.result(prediction, selection, images[index])

    def result(
        self, prediction: Prediction, selection: SelectionConfig, image: ImageInput
    ) -> HOIResult:
        """The result of an image that the predictor has predicted."""
        kept = selection.select(prediction.detections, self.vocabulary)
        return build_result(kept, prediction.size, self.vocabulary, self.unseen, image)
