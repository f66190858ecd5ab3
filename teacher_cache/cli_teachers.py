"""The commands of `eoid-cache` that make another teacher of what caches hold."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli import config_option, device_option

FOLDER = click.Path(path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)


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
    "--fit-temperature",
    is_flag=True,
    help="The temperature under which seen labels are likeliest; needs --data and --split.",
)
@click.option("--data", type=FOLDER, help="The dataset that CACHE was made from.")
@click.option("--split", metavar="NAME|FILE", help="Its unseen labels are not looked at.")
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
    fit_temperature: bool,
    data: Path | None,
    split: str | None,
    clip_model: str | None,
    clip_weights: str | None,
    device: str,
) -> None:
    """Ask anew about the regions of CACHE, without opening one image."""
    from teacher_cache.rescore import RescoreConfig
    from teacher_cache.rescore import rescore as run
    from teacher_cache.temperature import Labelled

    fitted_to = None
    if fit_temperature:
        if data is None or split is None:
            lacking = "--data" if data is None else "--split"
            raise click.UsageError(f"--fit-temperature: expected {lacking} beside it, found none.")
        fitted_to = Labelled(data, split)
    elif data is not None or split is not None:
        given = "--split" if data is None else "--data"
        raise click.UsageError(f"{given}: expected --fit-temperature beside it, found none.")
    run(
        RescoreConfig(
            cache=folder,
            out=out,
            templates=templates,
            vocabulary=vocabulary,
            temperature=temperature,
            fitted_to=fitted_to,
            clip_model=clip_model,
            clip_weights=clip_weights,
            device=device,
        )
    )


@click.command("fit-temperature")
@click.argument("folder", metavar="CACHE", type=FOLDER)
@click.option("--data", required=True, type=FOLDER, help="The dataset it was made from.")
@click.option(
    "--split", required=True, metavar="NAME|FILE", help="Its unseen labels are not looked at."
)
@click.option("--json", "json_file", type=FILE, help="The numbers.")
@click.option("--overwrite", is_flag=True, help="Replace this file.")
@config_option
def fit_temperature(
    folder: Path, data: Path, split: str, json_file: Path | None, overwrite: bool
) -> None:
    """Say under which temperature the seen labels behind CACHE are likeliest.

    `eoid-cache rescore --fit-temperature` writes a cache with it.
    """
    from teacher_cache.temperature import FitConfig, Labelled
    from teacher_cache.temperature import fit_temperature as run

    run(FitConfig(folder, Labelled(data, split), json_file, overwrite), click.echo)


@click.command()
@click.argument("folders", metavar="CACHE...", nargs=-1, required=True, type=FOLDER)
@click.option("--out", required=True, type=FOLDER, help="The new cache folder.")
@config_option
def ensemble(folders: tuple[Path, ...], out: Path) -> None:
    """Average the answers of several teachers to the same questions."""
    from teacher_cache.ensemble import EnsembleConfig
    from teacher_cache.ensemble import ensemble as run

    run(EnsembleConfig(folders, out), click.echo)


COMMANDS = (ensemble, fit_temperature, rescore)
