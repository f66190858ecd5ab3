"""Options of `eoid-cache build` and `eoid-cache plan`: what determines the outputs of a cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
import cloup

from pipeline.utils.cli import limit_option
from pipeline.utils.cli_options import FloatRange, PathType, option
from pipeline.utils.errors import InputError

if TYPE_CHECKING:
    from teacher_cache.build import BuildConfig

POSITIVE_INT = click.IntRange(min=1)
SCORE_RANGE = FloatRange(0, 1)

DATA = cloup.option_group(
    "Data",
    option(
        "--part",
        type=click.Choice(["train", "test"]),
        default="train",
        show_default=True,
        help="Part of the dataset.",
    ),
    limit_option("images"),
    option(
        "--strict",
        is_flag=True,
        help="Refuse annotation issues and unreadable images instead of counting them.",
    ),
)
PAIRS = cloup.option_group(
    "Pairs",
    option(
        "--candidates",
        type=click.Choice(["detector", "annotated"]),
        default="detector",
        show_default=True,
        help=(
            "Boxes that form pairs: a detector's, or all annotated ones (the published protocol)."
        ),
    ),
    option(
        "--person-threshold",
        type=SCORE_RANGE,
        hidden=True,
        show_default="0.2",
        help="Minimum detection score of people.",
    ),
    option(
        "--object-threshold",
        type=SCORE_RANGE,
        hidden=True,
        show_default="0.2",
        help="Minimum detection score of objects.",
    ),
    option(
        "--max-people",
        type=POSITIVE_INT,
        hidden=True,
        show_default="15",
        help="Maximum number of people per image, those with the highest scores.",
    ),
    option(
        "--max-objects",
        type=POSITIVE_INT,
        hidden=True,
        show_default="15",
        help="Maximum number of objects per image, those with the highest scores.",
    ),
)
DETECTOR = cloup.option_group(
    "Detector",
    option(
        "--detector",
        metavar="NAME|hf:NAME|hf-zero-shot:NAME|module:Class",
        show_default="the dataset's own, or fasterrcnn_resnet50_fpn_v2",
        help=(
            "A torchvision detection model, or toy, the toy dataset's; with hf: the name or folder"
            " of a model of transformers, with hf-zero-shot: of one that finds what the names of"
            " objects say (OWLv2, Grounding DINO); or a class of your own, whose code is run."
        ),
    ),
    option(
        "--detector-set",
        "detector_settings",
        multiple=True,
        metavar="KEY=VALUE",
        hidden=True,
        help=(
            "A setting of an own detector, revision=NAME of a model of transformers, or"
            " chunk_size=N of a zero-shot one."
        ),
    ),
    option(
        "--detector-weights",
        metavar="FILE|ENTRY",
        show_default="the dataset's own, or the default of the model",
        help="A weights file, or the name of a torchvision weights entry.",
    ),
    option(
        "--detector-classes",
        metavar="coco80|hico80|annotated|FILE",
        hidden=True,
        help=(
            "Classes of a weights file that has neither COCO's 91 nor the vocabulary's: "
            "COCO's 80 objects in COCO's order or in HICO-DET's (alphabetical), or a file "
            "with one name per line. Class 0 is the background. With hf-zero-shot: the objects to"
            " search for, by default all; annotated are those of the dataset's annotations."
        ),
    ),
    option(
        "--proposals",
        type=PathType(dir_okay=False),
        help="Detections in COCO results format (JSON), instead of a detector.",
    ),
    option(
        "--detector-batch-size",
        "images_per_batch",
        type=POSITIVE_INT,
        default=16,
        show_default=True,
        hidden=True,
        help="Batch size of the detector (images of one size).",
    ),
)
TEACHER = cloup.option_group(
    "Teacher",
    option(
        "--teacher",
        metavar="NAME|module:Class",
        default="open_clip",
        show_default=True,
        help=(
            "The model that scores the pairs: open_clip, a CLIP model that the options below"
            " choose; vlm, a vision-language model of transformers; or your own subclass of"
            " teacher_cache.teachers.base.Teacher, in a module of the working folder or an"
            " installed one."
        ),
    ),
    option(
        "--teacher-set",
        "teacher_settings",
        multiple=True,
        metavar="KEY=VALUE",
        help=(
            "A setting of vlm (model=NAME or model=FOLDER, and others), or of your own teacher: an"
            " argument of its class. Can be given several times."
        ),
    ),
    option(
        "--batch-size",
        "regions_per_batch",
        type=POSITIVE_INT,
        show_default="64, on a GPU 256",
        help="Batch size of the teacher (regions, with vlm prompts).",
    ),
)
CLIP = cloup.option_group(
    "CLIP",
    option(
        "--clip-model",
        metavar="NAME|FOLDER",
        show_default="the dataset's own, or RN50x16",
        help=(
            "An open_clip model, an hf-hub: name, a folder in open_clip's layout, or toy, the toy"
            " dataset's."
        ),
    ),
    option(
        "--clip-weights",
        metavar="TAG|FILE",
        show_default="openai without --clip-model",
        help="Weights of --clip-model: a pretrained tag of open_clip or a checkpoint file.",
    ),
    option(
        "--template",
        "templates",
        multiple=True,
        metavar="TEXT",
        show_default="a picture of person {ing} {object}",
        help=(
            "Sentence with {ing} and {object} that CLIP's text encoder gets for every interaction."
            " Can be given several times; the embeddings are averaged."
        ),
    ),
    option(
        "--sentences",
        type=PathType(dir_okay=False),
        metavar="FILE",
        help=(
            "JSON file with lists of sentences for verbs and interactions, used in place of the"
            " templates; their embeddings are averaged."
        ),
    ),
    option(
        "--level",
        type=click.Choice(["region", "image"]),
        default="region",
        show_default=True,
        hidden=True,
        help="The region of a pair: its union box, or the whole image.",
    ),
    option(
        "--region",
        default="pad",
        show_default=True,
        metavar="pad|stretch|context=F",
        hidden=True,
        help=(
            "How a region becomes the teacher's square input: padded with black (pad), stretched"
            " (stretch), or padded after its box is enlarged F-fold (context=F)."
        ),
    ),
    option(
        "--precision",
        type=click.Choice(["auto", "float32", "float16", "bfloat16"]),
        default="auto",
        show_default=True,
        hidden=True,
        help=(
            "Arithmetic of CLIP's image encoder; it changes the outputs. auto is float16 on"
            " a GPU, else float32."
        ),
    ),
    option(
        "--embeddings/--no-embeddings",
        default=True,
        show_default=True,
        hidden=True,
        help="Store the region embeddings, which rescoring and --verb-head text need.",
    ),
)


def extraction_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the argument DATASET and the options, which `make_build_config` takes."""
    for group in reversed((DATA, PAIRS, DETECTOR, TEACHER, CLIP)):
        command = group(command)
    return cloup.argument("dataset", type=PathType(), help="Dataset folder.")(command)


images_per_shard_option = option(
    "--images-per-shard",
    type=POSITIVE_INT,
    default=256,
    show_default=True,
    help="Number of images per shard.",
)


def make_build_config(options: dict[str, Any]) -> BuildConfig:
    """The configuration of a build from the values of its options, which are changed.

    Raises:
        InputError: options contradict each other, or a value has another form.
    """
    from dataclasses import fields

    from pipeline.datasets.dataset import open_dataset
    from teacher_cache.build import BuildConfig
    from teacher_cache.detectors.base import ZERO_SHOT_PREFIX
    from teacher_cache.detectors.class_names import (
        ANNOTATED_OBJECTS,
        annotated_object_names,
        load_class_names,
    )
    from teacher_cache.detectors.pairing import PairingConfig
    from teacher_cache.extraction.extract import ExtractionConfig
    from teacher_cache.teachers.prompts import DEFAULT_TEMPLATE
    from teacher_cache.teachers.regions import RegionMode

    pairing = {field.name: options.pop(field.name) for field in fields(PairingConfig)}
    pairing = {name: value for name, value in pairing.items() if value is not None}
    if options["candidates"] == "annotated" and pairing:
        option = f"--{next(iter(pairing)).replace('_', '-')}"
        raise InputError(f"{option}: expected none with --candidates annotated, which pairs all")
    names = {field.name for field in fields(ExtractionConfig)} & options.keys()
    extraction = {name: options.pop(name) for name in names}
    extraction["region"] = RegionMode.parse(extraction["region"])
    classes, detector = options["detector_classes"], options["detector"] or ""
    if classes == ANNOTATED_OBJECTS:
        if not detector.startswith(ZERO_SHOT_PREFIX):
            raise InputError(
                f"--detector-classes: expected {ANNOTATED_OBJECTS} with --detector"
                f" {ZERO_SHOT_PREFIX} only, found it with {detector or 'none'}"
            )
        options["detector_classes"] = annotated_object_names(
            open_dataset(options["dataset"]), options["part"], extraction["strict"]
        )
    elif classes is not None:
        options["detector_classes"] = load_class_names(classes)
    options["templates"] = options["templates"] or (DEFAULT_TEMPLATE,)
    return BuildConfig(
        extraction=ExtractionConfig(pairing=PairingConfig(**pairing), **extraction), **options
    )
