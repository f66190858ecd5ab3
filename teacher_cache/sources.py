"""What a cache's answers come from. Whoever makes shards opens it: the builder and every worker."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pipeline.annotations import AnnotationFile
from pipeline.datasets import open_dataset
from pipeline.vocabulary import Vocabulary
from teacher_cache.answering import AskingConfig
from teacher_cache.clip_teacher import ClipConfig
from teacher_cache.decoding import Question
from teacher_cache.detectors import DetectorConfig
from teacher_cache.format import fingerprint_of
from teacher_cache.models import Models, forget_models, load_models
from teacher_cache.pairing import annotated_pairs
from teacher_cache.plan import fingerprint_parts
from teacher_cache.prompts import Prompts, interaction_prompts


@dataclass(frozen=True)
class Sources:
    """Where everything is found; small, so that it can travel with every task.

    Attributes:
        dataset: the dataset folder.
        part: "train" or "test".
        detector, clip: which models.
        templates: sentences to ask with.
        asking: how images go through the models.
        device: where the models run, of the machine that opens them.
        threads: of torch, on a CPU; None leaves torch's own choice.
    """

    dataset: Path
    part: str
    detector: DetectorConfig
    clip: ClipConfig
    templates: tuple[str, ...]
    asking: AskingConfig
    device: str
    threads: int | None = None

    def absolute(self) -> Sources:
        """The same files, named for processes that work in other folders."""
        weights, clip_weights = self.detector.weights, self.clip.weights
        return replace(
            self,
            dataset=self.dataset.absolute(),
            detector=replace(self.detector, weights=weights and _absolute(weights)),
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
    """

    vocabulary: Vocabulary
    annotations: AnnotationFile
    questions: list[Question]


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


def read_subject(sources: Sources) -> Subject:
    """Reads the annotations.

    Raises:
        InputError: something is missing or wrong.
    """
    dataset = open_dataset(sources.dataset)
    annotations = dataset.load(sources.part, strict=sources.asking.strict)
    images = dataset.part(sources.part).images
    questions = [
        Question(annotation.image_id, images / annotation.image_id, annotated_pairs(annotation))
        for annotation in annotations.annotations
    ]
    return Subject(dataset.vocabulary, annotations, questions)


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
    digest = subject.annotations.digest
    parts = fingerprint_parts(models, vocabulary, prompts, sources.asking, sources.part, digest)
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
