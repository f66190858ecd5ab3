"""The commands of `eoid-cache` that take caches."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import cloup

from pipeline.utils.cli import EXIT_INTERRUPTED, EXIT_UNFINISHED, device_option
from pipeline.utils.cli_options import FloatRange, PathType, config_option, option

FOLDER = PathType()
FILE = PathType(dir_okay=False)
POSITIVE_INT = click.IntRange(min=1)

data_option = option(
    "--data", "dataset", required=True, type=FOLDER, help="Dataset that the cache was built from."
)
figure_option = option(
    "--figure", type=FILE, help="Draw the same numbers as a figure (.png, .svg or .pdf)."
)
clip_model_option = option(
    "--clip-model",
    metavar="NAME|FOLDER",
    show_default="as recorded in the cache",
    help="The CLIP model of the cache.",
)
clip_weights_option = option(
    "--clip-weights",
    metavar="TAG|FILE",
    help="Weights of --clip-model: a pretrained tag of open_clip or a checkpoint file.",
)
teacher_option = option(
    "--teacher",
    metavar="module:Class",
    help="The cache's teacher, if it is your own: its code runs only if you name it.",
)
teacher_set_option = option(
    "--teacher-set",
    "teacher_settings",
    multiple=True,
    metavar="KEY=VALUE",
    show_default="as recorded in the cache",
    help="A setting of --teacher. Can be given several times.",
)
sentences_option = option(
    "--sentences",
    type=FILE,
    help=(
        "JSON file with lists of sentences for verbs and interactions, used in place of the"
        " templates; their embeddings are averaged."
    ),
)
overwrite_option = option("--overwrite", is_flag=True, help="Replace existing files.")


@cloup.command()
@click.argument("cache", type=FOLDER)
@data_option
@option(
    "--split",
    default="full",
    show_default=True,
    metavar="NAME|FILE",
    help=(
        "Zero-shot split that defines which interactions are scored as seen and as unseen: a name"
        " or a TOML file."
    ),
)
@option(
    "--setting",
    type=click.Choice(["default", "known-object"]),
    default="default",
    show_default=True,
    help="Evaluation setting of HICO-DET.",
)
@option("--json", type=FOLDER, help="Write the results to this file.")
@option("--predictions", type=FOLDER, help="Write the teacher's detections to this file.")
@figure_option
@overwrite_option
@config_option
def evaluate(setting: str, **options: Any) -> None:
    """Score the teacher and the detector of CACHE against the dataset's annotations.

    Before a long training: eoid-cache inspect, this on a cache of the test part, and then
    eoid-train probe, which also learns from the labels.
    """
    from evaluation.score_hico import SETTINGS_OF_OPTION
    from teacher_cache.analysis.evaluate import evaluate_teacher

    evaluate_teacher(setting=SETTINGS_OF_OPTION[setting][0], **options)


@cloup.command()
@click.argument("cache", type=FOLDER)
@option("--json", type=FILE, help="Write the statistics to this file.")
@figure_option
@option(
    "--data",
    "dataset",
    type=FOLDER,
    help="Dataset that the cache was built from; adds annotated pairs without interaction.",
)
@overwrite_option
@config_option
def inspect(**options: Any) -> None:
    """Print statistics of CACHE and the settings it was built with."""
    from teacher_cache.analysis.inspect import inspect_cache

    inspect_cache(**options)


@cloup.command()
@click.argument("cache", type=FOLDER)
@option(
    "--add",
    "added",
    multiple=True,
    metavar="[NAME=]PHRASE[:OBJECTS]",
    help=(
        'An action, such as "jumping over", "jumping over:bench,box" or "jump=jumping '
        'over". Without OBJECTS it applies to every object that has an action.'
    ),
)
@option(
    "--vocabulary",
    metavar="NAME|FILE",
    help="Add the actions that this vocabulary has and the cache lacks.",
)
@option(
    "--new-objects",
    is_flag=True,
    help="Accept objects that the cache lacks, for students with --object-head text.",
)
@option("--out", required=True, type=FILE, help="The file to write.")
@option(
    "--template",
    "templates",
    multiple=True,
    metavar="TEXT",
    help=(
        "Sentence with {ing} and {object} that the cache was built with, where it does not record"
        " it. Can be given several times."
    ),
)
@sentences_option
@clip_model_option
@clip_weights_option
@teacher_option
@teacher_set_option
@overwrite_option
@device_option
@config_option
def prompts(**options: Any) -> None:
    """Encode prompts of new actions and objects, for students with a text head."""
    from teacher_cache.maintenance.add_prompts import create_prompts_file

    create_prompts_file(**options)


@cloup.command()
@click.argument("folders", metavar="CACHE...", nargs=-1, required=True, type=FOLDER)
@option("--out", required=True, type=FOLDER, help="The new cache folder.")
@config_option
def merge(folders: tuple[Path, ...], out: Path) -> None:
    """Join caches of one fingerprint, or the shards of separate jobs, into one."""
    from teacher_cache.maintenance.merge import merge_caches

    merge_caches(folders, out)


@cloup.command()
@click.argument("cache", type=FOLDER)
@click.argument("image")
@data_option
@option("--out", required=True, type=FILE, help="The image file to write: .png, .jpg or .webp.")
@option(
    "--top",
    type=POSITIVE_INT,
    default=3,
    show_default=True,
    help="Number of actions that are written beside each pair, the most probable ones.",
)
@option(
    "--pairs",
    type=POSITIVE_INT,
    default=8,
    show_default=True,
    help="Maximum number of pairs: annotated ones first, then the most confident proposals.",
)
@overwrite_option
@config_option
def show(**options: Any) -> None:
    """Draw IMAGE with its pairs, their regions and the teacher's most probable actions."""
    from teacher_cache.analysis.show import show_image

    show_image(**options)


@cloup.command()
@click.argument("cache", type=FOLDER)
@option(
    "--watch",
    is_flag=True,
    help="Print it every few seconds until CACHE is finished; wait until it exists.",
)
@option("--json", is_flag=True, help="Print the numbers as JSON, with --watch one object per line.")
@config_option
def status(watch: bool, **options: Any) -> None:
    """Tell how far the build of CACHE is: shards, failed images, processes, rate and time left.

    It works beside a running build and on any machine that sees the folder. The exit code is 0 if
    the cache is finished, 3 if it is not, and 2 if files are missing or damaged, of which verify
    finds all.
    """
    from teacher_cache.analysis.status import show_status

    try:
        finished = show_status(watch=watch, **options)
    except KeyboardInterrupt:
        if not watch:
            raise
        sys.exit(EXIT_INTERRUPTED)
    if not finished:
        sys.exit(EXIT_UNFINISHED)


@cloup.command()
@click.argument("cache", type=FOLDER)
@option("--repair", is_flag=True, help="Rebuild damaged files and remove unexpected ones.")
@option(
    "--data",
    "dataset",
    type=FOLDER,
    metavar="DATASET",
    show_default="its folder at the time of the build",
    help="Dataset that the cache must match and that a repair reads.",
)
@option(
    "--device",
    metavar="auto|cpu|cuda[:i]",
    show_default="the device of the build",
    help="Device of the models in a repair.",
)
@teacher_option
@option(
    "--detector",
    metavar="module:Class",
    help="The cache's detector, if it is your own: its code runs only if you name it.",
)
@config_option
def verify(**options: Any) -> None:
    """Check every byte of CACHE; complete the manifest of a cache that several jobs built."""
    from teacher_cache.maintenance.verify import verify_cache

    verify_cache(**options)


@cloup.command()
@click.argument("cache", type=FOLDER)
@option("--out", required=True, type=FOLDER, help="The new cache folder.")
@option(
    "--template",
    "templates",
    multiple=True,
    metavar="TEXT",
    show_default="those of the cache",
    help=(
        "Sentence with {ing} and {object} that CLIP's text encoder gets for every interaction. Can"
        " be given several times; the embeddings are averaged."
    ),
)
@option(
    "--vocabulary",
    metavar="NAME|FILE",
    show_default="that of the cache",
    help="Vocabulary with other verbs and more objects; objects are matched by name.",
)
@option(
    "--temperature",
    type=FloatRange(min=0, min_open=True),
    show_default="that of the cache",
    help="Softmax temperature, the inverse of the logit scale; CLIP's own is about 0.01.",
)
@sentences_option
@clip_model_option
@clip_weights_option
@teacher_option
@teacher_set_option
@device_option
@config_option
def rescore(**options: Any) -> None:
    """Compute CACHE's probabilities for other prompts or verbs, without reading images."""
    from teacher_cache.maintenance.rescore import RescoreConfig, rescore_cache

    rescore_cache(RescoreConfig(**options))


COMMANDS = {
    cloup.Section("Inspection"): (status, inspect, show, evaluate, verify),
    cloup.Section("New caches and prompts from old caches"): (merge, rescore, prompts),
}
