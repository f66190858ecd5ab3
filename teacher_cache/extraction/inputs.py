"""Dataset, models and prompts of a build, loaded once per process."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pipeline.annotations.load import AnnotationFile
from pipeline.datasets.dataset import Dataset, open_dataset
from pipeline.utils.devices import configure_device, resolve_device
from pipeline.utils.errors import InputError
from pipeline.utils.files import sha256_of_json
from pipeline.vocabulary import Vocabulary
from teacher_cache.detectors.base import DetectorConfig, ObjectDetector
from teacher_cache.detectors.load import load_detector
from teacher_cache.detectors.pairing import ObjectBoxes, annotated_boxes, annotated_pairs
from teacher_cache.detectors.proposals import Proposals, load_proposals
from teacher_cache.extraction.decoding import ImageTask
from teacher_cache.extraction.extract import ExtractionConfig
from teacher_cache.reader.fingerprint import compute_fingerprint
from teacher_cache.reader.format import FORMAT_VERSION
from teacher_cache.teachers.base import Teacher
from teacher_cache.teachers.load import TeacherConfig, load_teacher
from teacher_cache.teachers.prompts import DEFAULT_TEMPLATE, Prompts, interaction_prompts
from teacher_cache.teachers.text_image import TextImageTeacher


@dataclass(frozen=True)
class InputsConfig:
    """Paths and settings from which any process loads the same inputs.

    Attributes:
        detector: the detector whose boxes form pairs; None takes those of `proposals`, a file, or
            the annotated ones.
        device: "auto", "cpu" or "cuda[:i]" of the machine that loads the models.
        threads: torch's threads on a CPU; None leaves torch's default.
        limit: see `AnnotationFile.limited`.
        sentences: see `class_prompts`.
    """

    dataset: Path
    part: str
    detector: DetectorConfig | None
    teacher: TeacherConfig
    templates: tuple[str, ...]
    extraction: ExtractionConfig
    device: str
    threads: int | None = None
    proposals: Path | None = None
    limit: int | None = None
    sentences: Path | None = None

    def absolute(self) -> InputsConfig:
        """The same configuration with absolute paths, for processes with other working folders."""
        return replace(
            self,
            dataset=self.dataset.absolute(),
            detector=self.detector and self.detector.absolute(),
            proposals=self.proposals and self.proposals.absolute(),
            sentences=self.sentences and self.sentences.absolute(),
        )


@dataclass(frozen=True, eq=False)
class BuildData:
    """Dataset of a build; the image tasks are those of the annotated images, in their order, and
    the proposals those of the whole file."""

    vocabulary: Vocabulary
    annotations: AnnotationFile
    image_tasks: list[ImageTask]
    proposals: Proposals | None = None


@dataclass(frozen=True, eq=False)
class BuildInputs:
    """Loaded inputs of a build; the detector is None where all boxes are known beforehand, and the
    prompts are for a teacher that has no text encoder."""

    data: BuildData
    prompts: Prompts | None
    detector: ObjectDetector | None
    teacher: Teacher
    parts: dict[str, Any]

    @cached_property
    def fingerprint(self) -> str:
        return compute_fingerprint(self.parts)


# At most one entry: a process works on one cache at a time. Models stay loaded between shards.
_loaded_inputs: dict[InputsConfig, BuildInputs] = {}


def read_build_data(config: InputsConfig, dataset: Dataset | None = None) -> BuildData:
    """Reads the annotations and, where the build uses one, the detections file.

    Raises:
        InputError: a file is missing or wrong, or no label is left.
    """
    dataset, strict = dataset or open_dataset(config.dataset), config.extraction.strict
    whole = dataset.load(config.part, strict)
    if not whole.boxes_only:
        whole.require_labels()
    annotations = whole.limited(config.limit)
    images = dataset.part(config.part).images
    proposals = None
    boxes_by_image: Iterable[ObjectBoxes | None] = [None] * len(whole.annotations)
    if config.proposals is not None:
        # Detections of images that the limit leaves out are valid too.
        proposals = load_proposals(config.proposals, dataset, whole, strict)
        boxes_by_image = proposals.by_image()
    elif config.detector is None:
        boxes_by_image = map(annotated_boxes, whole.annotations)
    chosen = {annotation.image_id for annotation in annotations.annotations}
    image_tasks = [
        ImageTask(
            image_id=annotation.image_id,
            path=images / annotation.image_id,
            annotated_pairs=annotated_pairs(annotation),
            boxes=boxes,
            size=annotation.size,
        )
        for annotation, boxes in zip(whole.annotations, boxes_by_image, strict=True)
        if annotation.image_id in chosen
    ]
    return BuildData(dataset.vocabulary, annotations, image_tasks, proposals)


def load_build_inputs(config: InputsConfig, data: BuildData) -> BuildInputs:
    """Loads the models, and keeps all inputs for `get_build_inputs`.

    Raises:
        InputError: no such device, or a model or its weights cannot be loaded.
    """
    # Before the new models are loaded: the memory of the GPU may not suffice for both.
    clear_build_inputs()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    prompts: Prompts | None = interaction_prompts(
        data.vocabulary, config.templates, config.sentences
    )
    # Text encoders run in float32; TF32 would change their embeddings.
    precision = dict(config.teacher.settings).get("precision", "float32")
    device = configure_device(resolve_device(config.device), precision, exact_matmul=True)
    detector = None
    if config.detector is not None:
        detector = load_detector(config.detector, data.vocabulary, device)
    teacher = load_teacher(config.teacher, device)
    teacher.detector_follows = detector is not None
    teacher.region = config.extraction.region
    if config.extraction.regions_per_batch is not None:
        teacher.batch_size = config.extraction.regions_per_batch
    if not isinstance(teacher, TextImageTeacher):
        if config.templates != (DEFAULT_TEMPLATE,) or config.sentences is not None:
            option = "--template" if config.sentences is None else "--sentences"
            raise InputError(
                f"{option}: expected none with {teacher.name}, which has no text encoder, found"
                f" {config.sentences or repr(config.templates[0])}"
            )
        prompts = None
    parts = fingerprint_parts(data, detector, teacher, prompts, config.extraction)
    inputs = BuildInputs(data, prompts, detector, teacher, parts)
    _loaded_inputs[config] = inputs
    return inputs


def fingerprint_parts(
    data: BuildData,
    detector: ObjectDetector | None,
    teacher: Teacher,
    prompts: Prompts | None,
    extraction: ExtractionConfig,
) -> dict[str, Any]:
    """The parts of the fingerprint by name. Batch sizes are left out: they change no output."""
    boxes: dict[str, Any] = {"candidates": "annotated"}
    if detector is not None:
        boxes = {"candidates": "detector", **detector.fingerprint_parts()}
    elif data.proposals is not None:
        boxes = {"candidates": "proposals", "proposals": data.proposals.digest}
    if boxes["candidates"] != "annotated":
        boxes |= asdict(extraction.pairing)
    # The last one in existing caches, whose `build.json` has to keep its bytes.
    if "detector.classes" in boxes:
        boxes["detector.classes"] = boxes.pop("detector.classes")
    return {
        "format_version": FORMAT_VERSION,
        "vocabulary": data.vocabulary.digest(),
        "annotations": data.annotations.digest,
        "part": data.annotations.part,
        **boxes,
        **({} if prompts is None else {"prompts": sha256_of_json(prompts)}),
        **teacher.fingerprint_parts(),
        "level": extraction.level,
        "region": extraction.region.name,
    }


def get_build_inputs(config: InputsConfig) -> BuildInputs:
    """The inputs that this process has loaded for this configuration; loads them the first time.

    Raises:
        InputError: a file is missing or wrong, or a model cannot be loaded.
    """
    return _loaded_inputs.get(config) or load_build_inputs(config, read_build_data(config))


def clear_build_inputs() -> None:
    """Frees annotations and models, and their GPU memory for other processes."""
    _loaded_inputs.clear()
    torch.cuda.empty_cache()
