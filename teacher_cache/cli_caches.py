"""The commands of `eoid-cache` that take caches."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from pipeline.utils.cli import config_option, device_option

FOLDER = click.Path(path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
COUNT = click.IntRange(min=1)


@click.command()
@click.argument("folder", metavar="CACHE", type=click.Path(path_type=Path))
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), help="The dataset it was made from."
)
@click.option("--split", default="full", show_default=True, help="A split's name or TOML file.")
@click.option(
    "--setting",
    type=click.Choice(["default", "known_object"]),
    default="default",
    show_default=True,
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Results file.")
@click.option("--predictions", type=click.Path(path_type=Path), help="The teacher's detections.")
@click.option("--picture", type=FILE, help="The same as a picture: .png, .svg or .pdf.")
@click.option("--overwrite", is_flag=True, help="Replace these files.")
@config_option
def evaluate(
    folder: Path,
    data: Path,
    split: str,
    setting: Literal["default", "known_object"],
    json_file: Path | None,
    predictions: Path | None,
    picture: Path | None,
    overwrite: bool,
) -> None:
    """Score the teacher itself, and the detector, on the annotations behind CACHE."""
    from teacher_cache.analysis.evaluate import ScoreConfig, score_teacher

    score_teacher(
        ScoreConfig(
            cache=folder,
            dataset=data,
            split=split,
            setting=setting,
            json=json_file,
            predictions=predictions,
            picture=picture,
            overwrite=overwrite,
        )
    )


@click.command()
@click.argument("folder", metavar="CACHE", type=click.Path(path_type=Path))
@click.option("--json", "json_file", type=FILE, help="The numbers.")
@click.option("--picture", type=FILE, help="The same as a picture: .png, .svg or .pdf.")
@click.option("--overwrite", is_flag=True, help="Replace these files.")
@config_option
def inspect(folder: Path, json_file: Path | None, picture: Path | None, overwrite: bool) -> None:
    """Say what CACHE holds and what it was made from."""
    from teacher_cache.analysis.inspect import InspectConfig
    from teacher_cache.analysis.inspect import inspect as run

    run(InspectConfig(folder, json_file, picture, overwrite))


@click.command()
@click.argument("folder", metavar="CACHE", type=FOLDER)
@click.option(
    "--add",
    "added",
    multiple=True,
    metavar="[NAME=]PHRASE[:OBJECTS]",
    help='An action, such as "jumping over", "jumping over:bench,box" or "jump=jumping over".'
    " Without OBJECTS it goes with all that some action goes with.",
)
@click.option(
    "--vocabulary",
    metavar="NAME|FILE",
    help="Add what this vocabulary has beyond the cache's own.",
)
@click.option("--out", required=True, type=FILE, help="The file to write.")
@click.option(
    "--template",
    "templates",
    multiple=True,
    metavar="TEXT",
    help="The cache's own sentences, where it does not tell them itself.",
)
@click.option(
    "--clip-model",
    metavar="NAME|FOLDER",
    help="The cache's own CLIP. Default: where it was.",
)
@click.option("--clip-weights", metavar="TAG|FILE", help="Of --clip-model.")
@click.option("--overwrite", is_flag=True, help="Replace the file.")
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
    """Encode sentences about new actions, for students with --verb-head text."""
    from teacher_cache.maintenance.add_prompts import PromptsConfig, add_prompts

    add_prompts(
        PromptsConfig(
            cache=folder,
            out=out,
            added=added,
            vocabulary=vocabulary,
            templates=templates,
            clip_model=clip_model,
            clip_weights=clip_weights,
            device=device,
            overwrite=overwrite,
        ),
        click.echo,
    )


@click.command()
@click.argument("folders", metavar="CACHE...", nargs=-1, required=True, type=FOLDER)
@click.option("--out", required=True, type=FOLDER, help="The new cache folder.")
@click.option(
    "--data",
    type=FOLDER,
    metavar="DATASET",
    help="The whole dataset, when the caches were made from pieces of its annotations.",
)
@click.option(
    "--part", type=click.Choice(["train", "test"]), help="Of DATASET. Default: the caches' own."
)
@config_option
def merge(folders: tuple[Path, ...], out: Path, data: Path | None, part: str | None) -> None:
    """Join caches of one fingerprint, or the shards that separate jobs left, into one."""
    from teacher_cache.maintenance.merge import MergeConfig
    from teacher_cache.maintenance.merge import merge as run

    run(MergeConfig(folders, out, data, part))


@click.command()
@click.argument("folder", metavar="CACHE", type=FOLDER)
@click.argument("image")
@click.option("--data", required=True, type=FOLDER, help="The dataset it was made from.")
@click.option("--out", required=True, type=FILE, help="The picture: .png, .jpg or .webp.")
@click.option("--top", type=COUNT, default=3, show_default=True, help="Actions of a pair.")
@click.option(
    "--pairs",
    type=COUNT,
    default=8,
    show_default=True,
    help="At most so many: the annotated ones, then the surest proposals.",
)
@click.option("--overwrite", is_flag=True, help="Replace the picture.")
@config_option
def show(
    folder: Path, image: str, data: Path, out: Path, top: int, pairs: int, overwrite: bool
) -> None:
    """Draw IMAGE with its pairs, their regions and the teacher's best actions."""
    from teacher_cache.analysis.show import ShowConfig
    from teacher_cache.analysis.show import show as run

    run(ShowConfig(folder, image, data, out, top, pairs, overwrite))


@click.command()
@click.argument("folder", metavar="CACHE", type=FOLDER)
@click.option("--repair", is_flag=True, help="Make broken files again; remove what is left over.")
@click.option(
    "--data",
    type=FOLDER,
    metavar="DATASET",
    help="The cache must fit it; a repair asks about its images. Default: where it was.",
)
@click.option(
    "--device",
    metavar="auto|cpu|cuda[:i]",
    help="Where a repair runs the models. Default: where they ran.",
)
@config_option
def verify(folder: Path, repair: bool, data: Path | None, device: str | None) -> None:
    """Check every byte of CACHE; complete the manifest of one that several jobs have built."""
    from teacher_cache.maintenance.verify import VerifyConfig
    from teacher_cache.maintenance.verify import verify as run

    run(VerifyConfig(folder, repair, data, device))


@click.command()
@click.argument("folder", metavar="CACHE", type=FOLDER)
@click.option("--out", required=True, type=FOLDER, help="The new cache folder.")
@click.option(
    "--template",
    "templates",
    multiple=True,
    metavar="TEXT",
    help="Sentence with {ing} and {object}; several are averaged. Default: the cache's.",
)
@click.option(
    "--vocabulary",
    metavar="NAME|FILE",
    help="Other verbs and more objects; objects are recognised by name. Default: the cache's.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, min_open=True),
    help="Inverse of the factor on cosine similarities; CLIP's own is about 0.01.",
)
@click.option(
    "--clip-model",
    metavar="NAME|FOLDER",
    help="The cache's own CLIP, for sentences that it does not hold. Default: where it was.",
)
@click.option("--clip-weights", metavar="TAG|FILE", help="Of --clip-model.")
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
    """Ask anew about the regions of CACHE, without opening one image."""
    from teacher_cache.maintenance.rescore import RescoreConfig
    from teacher_cache.maintenance.rescore import rescore as run

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


COMMANDS = (evaluate, inspect, merge, prompts, rescore, show, verify)
