"""Dataset, models and prompts of a build, loaded once per process."""

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
from teacher_cache.detectors.pairing import ObjectBoxes, annotated_boxes, annotated_pairs
from teacher_cache.detectors.proposals import Proposals, ProposalsConfig, load_proposals
from teacher_cache.detectors.torchvision import Detector, DetectorConfig
from teacher_cache.extraction.decoding import ImageTask
from teacher_cache.extraction.extract import ExtractionConfig
from teacher_cache.reader.fingerprint import compute_fingerprint
from teacher_cache.teachers.clip import ClipConfig, ClipTeacher
from teacher_cache.teachers.prompts import Prompts, interaction_prompts
from teacher_cache.writer.plan import fingerprint_parts


@dataclass(frozen=True)
class InputsConfig:
    """Where everything is found; small, so that it can travel with every task.

    Attributes:
        dataset: the dataset folder.
        part: "train" or "test".
        detector: what finds the boxes that form pairs; None takes those of `proposals`, or the
            annotated ones.
        proposals: a file of detections, in the place of a detector.
        clip: which teacher.
        templates: prompt templates.
        extraction: how images go through the models.
        device: where the models run, of the machine that opens them.
        threads: of torch, on a CPU; None leaves torch's own choice.
    """

    dataset: Path
    part: str
    detector: DetectorConfig | None
    clip: ClipConfig
    templates: tuple[str, ...]
    extraction: ExtractionConfig
    device: str
    threads: int | None = None
    proposals: ProposalsConfig | None = None

    def absolute(self) -> InputsConfig:
        """The same files, named for processes that work in other folders."""
        detector, proposals, clip_weights = self.detector, self.proposals, self.clip.weights
        if detector is not None and detector.weights is not None:
            detector = replace(detector, weights=_absolute_path(detector.weights))
        if proposals is not None:
            proposals = ProposalsConfig(proposals.file.absolute(), proposals.folder.absolute())
        return replace(
            self,
            dataset=self.dataset.absolute(),
            detector=detector,
            proposals=proposals,
            clip=replace(
                self.clip,
                model=_absolute_path(self.clip.model),
                weights=clip_weights and _absolute_path(clip_weights),
            ),
        )


@dataclass(frozen=True, eq=False)
class BuildData:
    """What the teacher is run on.

    Attributes:
        vocabulary: of the dataset.
        annotations: the part's annotation file.
        image_tasks: one for each annotated image, in the file's order.
        proposals: what the detections file holds, where there is one.
    """

    vocabulary: Vocabulary
    annotations: AnnotationFile
    image_tasks: list[ImageTask]
    proposals: Proposals | None = None


@dataclass(frozen=True, eq=False)
class BuildInputs:
    """Loaded inputs of a build.

    Attributes:
        data: what the teacher is run on.
        prompts: the sentences, per interaction and template.
        models: the frozen models.
        parts: what goes into the fingerprint.
    """

    data: BuildData
    prompts: Prompts
    models: LoadedModels
    parts: dict[str, Any]

    @cached_property
    def fingerprint(self) -> str:
        return compute_fingerprint(self.parts)


_cached_inputs: dict[InputsConfig, BuildInputs] = {}
_inputs_lock = threading.Lock()


def read_build_data(config: InputsConfig, dataset: Dataset | None = None) -> BuildData:
    """Reads the annotations, and the detections where a file holds them.

    Args:
        config: where they are.
        dataset: the opened folder, where somebody has it.

    Raises:
        InputError: something is missing or wrong.
    """
    dataset, strict = dataset or open_dataset(config.dataset), config.extraction.strict
    annotations = dataset.load(config.part, strict)
    images = dataset.part(config.part).images
    entries = annotations.annotations
    proposals = None
    boxes: Iterable[ObjectBoxes | None] = [None] * len(entries)
    if config.proposals is not None:
        proposals = load_proposals(config.proposals, dataset, annotations, strict)
        boxes = proposals.by_image(len(entries))
    elif config.detector is None:
        boxes = map(annotated_boxes, entries)
    image_tasks = [
        ImageTask(
            image_id=annotation.image_id,
            path=images / annotation.image_id,
            annotated_pairs=annotated_pairs(annotation),
            boxes=found,
            size=annotation.size,
        )
        for annotation, found in zip(entries, boxes, strict=True)
    ]
    return BuildData(dataset.vocabulary, annotations, image_tasks, proposals)


def load_build_inputs(config: InputsConfig, data: BuildData) -> BuildInputs:
    """Loads the models.

    Raises:
        InputError: something is missing or wrong.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    vocabulary = data.vocabulary
    prompts = interaction_prompts(vocabulary, config.templates)
    models = load_models(config.detector, config.clip, vocabulary, config.device)
    digest = None if data.proposals is None else data.proposals.digest
    parts = fingerprint_parts(
        models, data.annotations, vocabulary, prompts, config.extraction, digest
    )
    inputs = BuildInputs(data, prompts, models, parts)
    _cached_inputs.clear()
    _cached_inputs[config] = inputs
    return inputs


def get_build_inputs(config: InputsConfig) -> BuildInputs:
    """What this process loaded before, or loads now.

    Raises:
        InputError: something is missing or wrong.
    """
    with _inputs_lock:
        return _cached_inputs.get(config) or load_build_inputs(config, read_build_data(config))


def clear_build_inputs() -> None:
    """Frees annotations and models, where other processes do the work."""
    _cached_inputs.clear()
    clear_models()


def _absolute_path(name: str) -> str:
    """A model's or a weights entry's name, or the file that it may be."""
    return str(Path(name).absolute()) if Path(name).exists() else name


@dataclass(frozen=True, eq=False)
class LoadedModels:
    """The frozen models of a build; no detector where all boxes are known beforehand."""

    detector: Detector | None
    clip: ClipTeacher


# A process works for one cache at a time; its models stay loaded between shards.
_cached_models: dict[tuple[DetectorConfig | None, ClipConfig, str, str], LoadedModels] = {}


def load_models(
    detector: DetectorConfig | None, clip: ClipConfig, vocabulary: Vocabulary, device: str
) -> LoadedModels:
    """This process's models, loaded when first asked for.

    Args:
        detector, clip: which models.
        vocabulary: of the dataset.
        device: auto, cpu or cuda[:i].

    Raises:
        InputError: no such device, or a model or its weights cannot be loaded.
    """
    # Regions are cut out by matrix products, which rounded factors would move by grey levels.
    where = configure_device(resolve_device(device), clip.precision, exact_matmul=True)
    key = (detector, clip, vocabulary.digest(), str(where))
    if key not in _cached_models:
        _cached_models.clear()
        found = None if detector is None else Detector(detector, vocabulary, where)
        _cached_models[key] = LoadedModels(found, ClipTeacher(clip, where))
    return _cached_models[key]


def clear_models() -> None:
    """Frees this process's models and the memory of their GPU, where others do the work."""
    _cached_models.clear()
    torch.cuda.empty_cache()
