"""What a cache's answers come from. Whoever makes shards opens it: the builder and every worker."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pipeline.annotations.load import AnnotationFile
from pipeline.datasets.dataset import Dataset, open_dataset
from pipeline.utils.devices import configure_device, resolve_device
from pipeline.vocabulary import Vocabulary
from teacher_cache.detectors.pairing import FoundBoxes, annotated_boxes, annotated_pairs
from teacher_cache.detectors.proposals import Proposals, ProposalsConfig, open_proposals
from teacher_cache.detectors.torchvision import Detector, DetectorConfig
from teacher_cache.extraction.decoding import Question
from teacher_cache.extraction.extract import AskingConfig
from teacher_cache.reader.fingerprint import fingerprint_of
from teacher_cache.teachers.clip import ClipConfig, ClipTeacher
from teacher_cache.teachers.prompts import Prompts, interaction_prompts
from teacher_cache.writer.plan import fingerprint_parts


@dataclass(frozen=True)
class Sources:
    """Where everything is found; small, so that it can travel with every task.

    Attributes:
        dataset: the dataset folder.
        part: "train" or "test".
        detector: what finds the boxes that form pairs; None takes those of `proposals`, or the
            annotated ones.
        proposals: a file of detections, in the place of a detector.
        clip: which teacher.
        templates: sentences to ask with.
        asking: how images go through the models.
        device: where the models run, of the machine that opens them.
        threads: of torch, on a CPU; None leaves torch's own choice.
    """

    dataset: Path
    part: str
    detector: DetectorConfig | None
    clip: ClipConfig
    templates: tuple[str, ...]
    asking: AskingConfig
    device: str
    threads: int | None = None
    proposals: ProposalsConfig | None = None

    def absolute(self) -> Sources:
        """The same files, named for processes that work in other folders."""
        detector, proposals, clip_weights = self.detector, self.proposals, self.clip.weights
        if detector is not None and detector.weights is not None:
            detector = replace(detector, weights=_absolute(detector.weights))
        if proposals is not None:
            proposals = ProposalsConfig(proposals.file.absolute(), proposals.folder.absolute())
        return replace(
            self,
            dataset=self.dataset.absolute(),
            detector=detector,
            proposals=proposals,
            clip=replace(
                self.clip,
                model=_absolute(self.clip.model),
                weights=clip_weights and _absolute(clip_weights),
            ),
        )


@dataclass(frozen=True, eq=False)
class Subject:
    """What is asked about.

    Attributes:
        vocabulary: of the dataset.
        annotations: the part's annotation file.
        questions: one for each annotated image, in the file's order.
        proposals: what the detections file holds, where there is one.
    """

    vocabulary: Vocabulary
    annotations: AnnotationFile
    questions: list[Question]
    proposals: Proposals | None = None


@dataclass(frozen=True, eq=False)
class Opened:
    """Sources ready to work with.

    Attributes:
        subject: what is asked about.
        prompts: the sentences, per interaction and template.
        models: the frozen models.
        parts: what goes into the fingerprint.
    """

    subject: Subject
    prompts: Prompts
    models: Models
    parts: dict[str, Any]

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_of(self.parts)


_opened: dict[Sources, Opened] = {}
_opening = threading.Lock()


def read_subject(sources: Sources, dataset: Dataset | None = None) -> Subject:
    """Reads the annotations, and the detections where a file holds them.

    Args:
        sources: where they are.
        dataset: the opened folder, where somebody has it.

    Raises:
        InputError: something is missing or wrong.
    """
    dataset, strict = dataset or open_dataset(sources.dataset), sources.asking.strict
    annotations = dataset.load(sources.part, strict)
    images = dataset.part(sources.part).images
    entries = annotations.annotations
    proposals = None
    boxes: Iterable[FoundBoxes | None] = [None] * len(entries)
    if sources.proposals is not None:
        proposals = open_proposals(sources.proposals, dataset, annotations, strict)
        boxes = proposals.by_image(len(entries))
    elif sources.detector is None:
        boxes = map(annotated_boxes, entries)
    questions = [
        Question(
            image_id=annotation.image_id,
            path=images / annotation.image_id,
            annotated=annotated_pairs(annotation),
            boxes=found,
            size=annotation.size,
        )
        for annotation, found in zip(entries, boxes, strict=True)
    ]
    return Subject(dataset.vocabulary, annotations, questions, proposals)


def open_sources(sources: Sources, subject: Subject) -> Opened:
    """Loads the models that are to answer.

    Raises:
        InputError: something is missing or wrong.
    """
    if sources.threads is not None:
        torch.set_num_threads(sources.threads)
    vocabulary = subject.vocabulary
    prompts = interaction_prompts(vocabulary, sources.templates)
    models = load_models(sources.detector, sources.clip, vocabulary, sources.device)
    digest = None if subject.proposals is None else subject.proposals.digest
    parts = fingerprint_parts(
        models, subject.annotations, vocabulary, prompts, sources.asking, digest
    )
    opened = Opened(subject, prompts, models, parts)
    _opened.clear()
    _opened[sources] = opened
    return opened


def opened_here(sources: Sources) -> Opened:
    """What this process opened before, or opens now.

    Raises:
        InputError: something is missing or wrong.
    """
    with _opening:
        return _opened.get(sources) or open_sources(sources, read_subject(sources))


def forget_sources() -> None:
    """Frees annotations and models, where other processes do the work."""
    _opened.clear()
    forget_models()


def _absolute(name: str) -> str:
    """A model's or a weights entry's name, or the file that it may be."""
    return str(Path(name).absolute()) if Path(name).exists() else name


@dataclass(frozen=True, eq=False)
class Models:
    """The frozen models of a build; no detector where all boxes are known beforehand."""

    detector: Detector | None
    clip: ClipTeacher


# A process works for one cache at a time; its models stay loaded between shards.
_loaded: dict[tuple[DetectorConfig | None, ClipConfig, str, str], Models] = {}


def load_models(
    detector: DetectorConfig | None, clip: ClipConfig, vocabulary: Vocabulary, device: str
) -> Models:
    """This process's models, loaded when first asked for.

    Args:
        detector, clip: which models.
        vocabulary: of the dataset.
        device: auto, cpu or cuda[:i].

    Raises:
        InputError: no such device, or a model or its weights cannot be loaded.
    """
    # Regions are cut out by matrix products, which rounded factors would move by grey levels.
    where = configure_device(resolve_device(device), clip.precision, exact_products=True)
    key = (detector, clip, vocabulary.digest(), str(where))
    if key not in _loaded:
        _loaded.clear()
        found = None if detector is None else Detector(detector, vocabulary, where)
        _loaded[key] = Models(found, ClipTeacher(clip, where))
    return _loaded[key]


def forget_models() -> None:
    """Frees this process's models and the memory of their GPU, where others do the work."""
    _loaded.clear()
    torch.cuda.empty_cache()
