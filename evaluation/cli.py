"""The `eoid-eval` command: score predictions files, write reports."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli import config_option, run_command

FILE = click.Path(dir_okay=False, path_type=Path)


@click.group()
def evaluation() -> None:
    """Scores predictions against annotations; writes reports."""


@evaluation.command()
@click.argument("predictions", type=FILE)
@click.option("--annotations", type=FILE, required=True, help="Annotation file of the test images.")
@click.option(
    "--vocabulary",
    default="hico-det",
    show_default=True,
    metavar="NAME|FILE",
    help="What the files' numbers mean.",
)
@click.option(
    "--split",
    default="full",
    show_default=True,
    metavar="NAME|FILE",
    help="Zero-shot split that tells seen from unseen.",
)
@click.option(
    "--setting",
    type=click.Choice(["default", "known-object", "both"]),
    default="default",
    show_default=True,
)
@click.option("--nms", is_flag=True, help="Pairwise non-maximum suppression first.")
@click.option("--strict", is_flag=True, help="Refuse annotations with blemishes.")
@click.option("--json", "json_file", type=FILE, help="Write the results here too.")
@click.option("--overwrite", is_flag=True, help="Replace the JSON file.")
@config_option
def hico(
    predictions: Path,
    annotations: Path,
    vocabulary: str,
    split: str,
    setting: str,
    nms: bool,
    strict: bool,
    json_file: Path | None,
    overwrite: bool,
) -> None:
    """Scores a predictions file by the HICO-DET protocol."""
    from evaluation.score_file import SETTINGS, ScoreConfig, score_file

    config = ScoreConfig(
        predictions,
        annotations,
        vocabulary,
        split,
        SETTINGS[setting],
        nms,
        strict,
        json_file,
        overwrite,
    )
    for line in score_file(config):
        click.echo(line)


@evaluation.command()
@click.argument("results", type=FILE, nargs=-1, required=True)
@click.option("--out", type=FILE, required=True, help="The HTML file to write.")
@click.option("--overwrite", is_flag=True, help="Replace the HTML file.")
@config_option
def report(results: tuple[Path, ...], out: Path, overwrite: bool) -> None:
    """Writes one self-contained HTML page from results files, given in any order."""
    from evaluation.report import write_report

    write_report(results, out, overwrite)
    click.echo(f"wrote {out}")


def main() -> None:
    """Entry point of `eoid-eval`."""
    run_command(evaluation)
