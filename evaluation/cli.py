"""The `eoid-eval` command: score predictions files, write reports."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evaluation.scoring_options import details_option, scoring_from, scoring_options
from pipeline.utils.cli import config_option, run_command

if TYPE_CHECKING:
    pass

FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
PATH = click.Path(path_type=Path)
data_option = click.option(
    "--data", type=FOLDER, help="Dataset folder; default: found around the annotations."
)


@click.group()
def evaluation() -> None:
    """Scores predictions against annotations; writes reports."""


@evaluation.command()
@click.argument("predictions", metavar="PREDICTIONS|RUN", type=PATH)
@click.option("--annotations", type=FILE, help="Annotation file of the test images.")
@data_option
@click.option(
    "--vocabulary",
    metavar="NAME|FILE",
    help="What the files' numbers mean; default: as the dataset says, else hico-det.",
)
@click.option(
    "--split",
    default="full",
    show_default=True,
    metavar="NAME|FILE",
    help="Zero-shot split that tells seen from unseen.",
)
@scoring_options
@details_option
@click.option("--strict", is_flag=True, help="Refuse annotations with blemishes.")
@click.option("--json", "json_file", type=FILE, help="Write the results here too.")
@click.option("--overwrite", is_flag=True, help="Replace the JSON file.")
@config_option
def hico(
    predictions: Path,
    annotations: Path | None,
    data: Path | None,
    vocabulary: str | None,
    split: str,
    details: tuple[str, ...],
    strict: bool,
    json_file: Path | None,
    overwrite: bool,
    **options: Any,
) -> None:
    """Scores a predictions file, or a run's, by the HICO-DET protocol.

    Against --annotations, or the test part of --data. Checkpoints, published ones too, are for
    `eoid-train evaluate`, which predicts with them and scores.
    """
    from evaluation.score_hico import ScoreConfig, score_file

    config = ScoreConfig(
        predictions,
        annotations,
        vocabulary,
        split,
        scoring_from(**options),
        details,
        strict,
        json_file,
        overwrite,
        data,
    )
    for line in score_file(config):
        click.echo(line)


@evaluation.command()
@click.argument("predictions", metavar="DETECTIONS|RUN", type=PATH)
@click.option(
    "--actions",
    "--annotations",
    type=FILE,
    help="Official actions file, like vcoco_test.json.",
)
@data_option
@click.option("--instances", type=FILE, help="COCO's boxes; default: found near the actions.")
@click.option("--ids", type=FILE, help="Ids of the part's images; default: found near the actions.")
@click.option(
    "--vocabulary",
    metavar="NAME|FILE",
    help="What the numbers of a run's predictions mean; default: as the dataset says, else vcoco.",
)
@click.option("--strict", is_flag=True, help="Refuse annotations with blemishes.")
@click.option("--json", "json_file", type=FILE, help="Write the results here too.")
@click.option("--official", type=FILE, help="Write the official layout here (.json or .npz).")
@click.option("--overwrite", is_flag=True, help="Replace these files.")
@config_option
def vcoco(
    predictions: Path,
    actions: Path | None,
    data: Path | None,
    instances: Path | None,
    ids: Path | None,
    vocabulary: str | None,
    strict: bool,
    json_file: Path | None,
    official: Path | None,
    overwrite: bool,
) -> None:
    """Scores detections in V-COCO's official layout (JSON, NPZ or pickle), or a run's.

    Against --actions, or the test part of --data.
    """
    from evaluation.score_vcoco import VcocoConfig, score_vcoco

    config = VcocoConfig(
        predictions,
        actions,
        instances,
        ids,
        vocabulary,
        strict,
        json_file,
        official,
        overwrite,
        data,
    )
    for line in score_vcoco(config):
        click.echo(line)


@evaluation.command()
@click.argument("results", type=FILE, nargs=-1, required=True)
@click.option("--out", type=FILE, required=True, help="The HTML file to write.")
@click.option(
    "--png",
    type=FOLDER,
    help="Folder for the pictures as PNG files; default: NAME-pictures beside NAME.html.",
)
@click.option(
    "--data",
    type=FOLDER,
    help="Dataset folder, where it is not where the results say.",
)
@click.option("--overwrite", is_flag=True, help="Replace the HTML file and the pictures.")
@config_option
def report(
    results: tuple[Path, ...], out: Path, png: Path | None, data: Path | None, overwrite: bool
) -> None:
    """Writes one self-contained HTML page from results files, given in any order."""
    from evaluation.report.write import ReportConfig, write_report

    config = ReportConfig(results, out, png, data, overwrite)
    write_report(config)
    click.echo(f"wrote {out} and {config.pictures}")


def main() -> None:
    """Entry point of `eoid-eval`."""
    run_command(evaluation)
