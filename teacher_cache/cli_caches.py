"""The commands of `eoid-cache` that take caches."""

from __future__ import annotations

from pathlib import Path

import click
import cloup

from pipeline.utils.cli import device_option
from pipeline.utils.cli_settings import config_option, option

FOLDER = click.Path(path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
POSITIVE_INT = click.IntRange(min=1)


@cloup.command()
@click.argument("folder", metavar="CACHE", type=click.Path(path_type=Path))
@option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    help="Dataset that the cache was built from.",
)
@option(
    "--split", default="full", show_default=True, help="Zero-shot split: a name or a TOML file."
)
@option(
    "--setting",
    type=click.Choice(["default", "known-object"]),
    default="default",
    show_default=True,
    help="Evaluation setting of HICO-DET.",
)
@option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write the results to this file."
)
@option(
    "--predictions",
    type=click.Path(path_type=Path),
    help="Write the teacher's detections to this file.",
)
@option("--figure", type=FILE, help="Draw the same numbers as a figure (.png, .svg or .pdf).")
@option("--overwrite", is_flag=True, help="Replace existing files.")
@config_option
def evaluate(
    folder: Path,
    data: Path,
    split: str,
    setting: str,
    json_file: Path | None,
    predictions: Path | None,
    figure: Path | None,
    overwrite: bool,
) -> None:
    """Score the teacher and the detector of CACHE against the dataset's annotations."""
    from evaluation.score_hico import SETTINGS_OF_OPTION
    from teacher_cache.analysis.evaluate import EvaluateConfig, evaluate_teacher

    evaluate_teacher(
        EvaluateConfig(
            cache=folder,
            dataset=data,
            split=split,
            setting=SETTINGS_OF_OPTION[setting][0],
            json=json_file,
            predictions=predictions,
            figure=figure,
            overwrite=overwrite,
        )
    )


@cloup.command()
@click.argument("folder", metavar="CACHE", type=click.Path(path_type=Path))
@option("--json", "json_file", type=FILE, help="Write the statistics to this file.")
@option("--figure", type=FILE, help="Draw the same numbers as a figure (.png, .svg or .pdf).")
@option("--overwrite", is_flag=True, help="Replace existing files.")
@config_option
def inspect(folder: Path, json_file: Path | None, figure: Path | None, overwrite: bool) -> None:
    """Print statistics of CACHE and the settings it was built with."""
    from teacher_cache.analysis.inspect import InspectConfig
    from teacher_cache.analysis.inspect import inspect_cache as run

    run(InspectConfig(folder, json_file, figure, overwrite))


@cloup.command()
@click.argument("folder", metavar="CACHE", type=FOLDER)
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
@option("--out", required=True, type=FILE, help="The file to write.")
@option(
    "--template",
    "templates",
    multiple=True,
    metavar="TEXT",
    help="Prompt templates of the cache, where it does not record them.",
)
@option(
    "--clip-model",
    metavar="NAME|FOLDER",
    show_default="as recorded in the cache",
    help="The CLIP model of the cache.",
)
@option("--clip-weights", metavar="TAG|FILE", help="Weights of --clip-model.")
@option("--overwrite", is_flag=True, help="Replace an existing file.")
@device_option
@config_option
def prompts(
    folder: Path,
    added: tuple[str, ...],
    vocabulary: str | None,
    out: Path,
    templates: tuple[str, ...],
    clip_model: str | None,
    clip_weights: str | None,
    overwrite: bool,
    device: str,
) -> None:
    """Encode prompts of new actions, for students with --verb-head text."""
    from teacher_cache.maintenance.add_prompts import AddPromptsConfig, create_prompts_file

    create_prompts_file(
        AddPromptsConfig(
            cache=folder,
            out=out,
            added=added,
            vocabulary=vocabulary,
            templates=templates,
            clip_model=clip_model,
            clip_weights=clip_weights,
            device=device,
            overwrite=overwrite,
        )
    )


@cloup.command()
@click.argument("folders", metavar="CACHE...", nargs=-1, required=True, type=FOLDER)
@option("--out", required=True, type=FOLDER, help="The new cache folder.")
@config_option
def merge(folders: tuple[Path, ...], out: Path) -> None:
    """Join caches of one fingerprint, or the shards of separate jobs, into one."""
    from teacher_cache.maintenance.merge import merge_caches

    merge_caches(folders, out)


@cloup.command()
@click.argument("folder", metavar="CACHE", type=FOLDER)
@click.argument("image")
@option("--data", required=True, type=FOLDER, help="Dataset that the cache was built from.")
@option("--out", required=True, type=FILE, help="The image file to write: .png, .jpg or .webp.")
@option(
    "--top", type=POSITIVE_INT, default=3, show_default=True, help="Number of actions per pair."
)
@option(
    "--pairs",
    type=POSITIVE_INT,
    default=8,
    show_default=True,
    help=("Maximum number of pairs: annotated ones first, then the most confident proposals."),
)
@option("--overwrite", is_flag=True, help="Replace an existing file.")
@config_option
def show(
    folder: Path, image: str, data: Path, out: Path, top: int, pairs: int, overwrite: bool
) -> None:
    """Draw IMAGE with its pairs, their regions and the teacher's most probable actions."""
    from teacher_cache.analysis.show import ShowConfig
    from teacher_cache.analysis.show import show_image as run

    run(ShowConfig(folder, image, data, out, top, pairs, overwrite))


@cloup.command()
@click.argument("folder", metavar="CACHE", type=FOLDER)
@option("--repair", is_flag=True, help="Rebuild damaged files and remove unexpected ones.")
@option(
    "--data",
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
@config_option
def verify(folder: Path, repair: bool, data: Path | None, device: str | None) -> None:
    """Check every byte of CACHE; complete the manifest of a cache that several jobs built."""
    from teacher_cache.maintenance.verify import VerifyConfig
    from teacher_cache.maintenance.verify import verify_cache as run

    run(VerifyConfig(folder, repair, data, device))


@cloup.command()
@click.argument("folder", metavar="CACHE", type=FOLDER)
@option("--out", required=True, type=FOLDER, help="The new cache folder.")
@option(
    "--template",
    "templates",
    multiple=True,
    metavar="TEXT",
    show_default="those of the cache",
    help="Prompt template with {ing} and {object}; several are averaged.",
)
@option(
    "--vocabulary",
    metavar="NAME|FILE",
    show_default="that of the cache",
    help="Vocabulary with other verbs and more objects; objects are matched by name.",
)
@option(
    "--temperature",
    type=click.FloatRange(min=0, min_open=True),
    show_default="that of the cache",
    help="Softmax temperature, the inverse of the logit scale; CLIP's own is about 0.01.",
)
@option(
    "--clip-model",
    metavar="NAME|FOLDER",
    show_default="as recorded in the cache",
    help="The CLIP model of the cache, for prompts that it lacks.",
)
@option("--clip-weights", metavar="TAG|FILE", help="Weights of --clip-model.")
@device_option
@config_option
def rescore(
    folder: Path,
    out: Path,
    templates: tuple[str, ...],
    vocabulary: str | None,
    temperature: float | None,
    clip_model: str | None,
    clip_weights: str | None,
    device: str,
) -> None:
    """Compute CACHE's probabilities for other prompts or verbs, without reading images."""
    from teacher_cache.maintenance.rescore import RescoreConfig
    from teacher_cache.maintenance.rescore import rescore_cache as run

    run(
        RescoreConfig(
            cache=folder,
            out=out,
            templates=templates,
            vocabulary=vocabulary,
            temperature=temperature,
            clip_model=clip_model,
            clip_weights=clip_weights,
            device=device,
        )
    )


COMMANDS = {
    cloup.Section("Inspection"): (inspect, show, evaluate, verify),
    cloup.Section("New caches and prompts from old caches"): (merge, rescore, prompts),
}
