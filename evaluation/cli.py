"""The `eoid-eval` command: score predictions files, write reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import cloup

from evaluation.scoring_options import build_scoring_config, details_option, scoring_options
from pipeline.utils.cli import HELP_SETTINGS, run_command
from pipeline.utils.cli_options import PathType, config_option, option

FILE = PathType(dir_okay=False)
FOLDER = PathType(file_okay=False)
PATH = PathType()
data_option = option(
    "--data", type=FOLDER, show_default="found around the annotations", help="Dataset folder."
)

strict_option = option(
    "--strict", is_flag=True, help="Refuse annotation issues instead of repairing them."
)
json_option = option("--json", type=FILE, help="Write the results to this file.")
overwrite_option = option("--overwrite", is_flag=True, help="Replace existing files.")


@cloup.group(context_settings=HELP_SETTINGS)
def evaluation() -> None:
    """Score predictions against annotations and write reports."""


@evaluation.command()
@click.argument("predictions", metavar="PREDICTIONS|RUN", type=PATH)
@cloup.option_group(
    "Ground truth",
    option("--annotations", type=FILE, help="Annotation file of the test images."),
    data_option,
    option(
        "--vocabulary",
        metavar="NAME|FILE",
        show_default="the dataset's, else hico-det",
        help="Vocabulary of the files.",
    ),
    strict_option,
)
@cloup.option_group(
    "Scoring",
    option(
        "--split",
        default="full",
        show_default=True,
        metavar="NAME|FILE",
        help="Zero-shot split that defines seen and unseen.",
    ),
    scoring_options,
)
@cloup.option_group("Output", details_option, json_option, overwrite_option)
@config_option
def hico(
    predictions: Path,
    annotations: Path | None,
    data: Path | None,
    vocabulary: str | None,
    split: str,
    details: tuple[str, ...],
    strict: bool,
    json: Path | None,
    overwrite: bool,
    **options: Any,
) -> None:
    """Score a predictions file, or a run's predictions, by the HICO-DET protocol.

    Against --annotations, or the test part of --data. Checkpoints, published ones too, are for
    `eoid-train evaluate`, which predicts and scores.
    """
    from evaluation.score_hico import score_hico_file

    scoring = build_scoring_config(**options)
    lines = score_hico_file(
        predictions, annotations, data, vocabulary, split, scoring, details, strict, json, overwrite
    )
    click.echo("\n".join(lines))


@evaluation.command()
@click.argument("predictions", metavar="DETECTIONS|RUN", type=PATH)
@cloup.option_group(
    "Ground truth",
    option(
        "--actions",
        "--annotations",
        type=FILE,
        help="Official actions file, such as vcoco_test.json.",
    ),
    data_option,
    option(
        "--instances",
        type=FILE,
        show_default="found beside the actions",
        help="COCO instances file.",
    ),
    option(
        "--ids",
        type=FILE,
        show_default="found beside the actions",
        help="Image ids of the part.",
    ),
    option(
        "--vocabulary",
        metavar="NAME|FILE",
        show_default="the dataset's, else vcoco",
        help="Vocabulary of a run's predictions.",
    ),
    strict_option,
)
@cloup.option_group(
    "Output",
    json_option,
    option(
        "--official",
        type=FILE,
        help="Write the detections in the official layout to this file (.json or .npz).",
    ),
    overwrite_option,
)
@config_option
def vcoco(**options: Any) -> None:
    """Score detections in V-COCO's official layout (JSON, NPZ or pickle), or a run's predictions.

    Against --actions, or the test part of --data.
    """
    from evaluation.score_vcoco import score_vcoco_file

    click.echo("\n".join(score_vcoco_file(**options)))


@evaluation.command()
@click.argument("predictions", metavar="PREDICTIONS|RUN", type=PATH)
@cloup.option_group(
    "Ground truth",
    option("--annotations", type=FILE, help="Annotation file, such as swig_test_1000.json."),
    data_option,
    option(
        "--vocabulary",
        metavar="NAME|FILE",
        show_default="the dataset's, else swig-hoi",
        help="Vocabulary of the files.",
    ),
    strict_option,
)
@cloup.option_group(
    "Scoring",
    option(
        "--split",
        show_default="swig, or full if the vocabulary has no such split",
        metavar="NAME|FILE",
        help="Zero-shot split that defines seen and unseen.",
    ),
)
@cloup.option_group(
    "Output",
    details_option,
    json_option,
    option(
        "--official",
        type=FILE,
        help="Write the detections in the layout of the public projects to this file.",
    ),
    overwrite_option,
)
@config_option
def swig(**options: Any) -> None:
    """Score a predictions file, or a run's predictions, by the SWIG-HOI protocol.

    Against --annotations, or the test part of --data. PREDICTIONS has the HOIA/PPDM form, or is
    JSON or a pickle of the public projects (THID, CMD-SE, INP-CC, SGC-Net, SL-HOI).
    """
    from evaluation.score_swig import score_swig_file

    click.echo("\n".join(score_swig_file(**options)))


@evaluation.command()
@click.argument("results", metavar="RESULTS|RUN...", type=PATH, nargs=-1, required=True)
@option("--out", type=FILE, required=True, help="The HTML file to write.")
@option(
    "--png",
    type=FOLDER,
    show_default="NAME-pictures beside NAME.html",
    help="Folder for the figures as PNG files.",
)
@option(
    "--data",
    type=FOLDER,
    show_default="as recorded in the results",
    help="Dataset folder.",
)
@overwrite_option
@config_option
def report(
    results: tuple[Path, ...], out: Path, png: Path | None, data: Path | None, overwrite: bool
) -> None:
    """Write one self-contained HTML page from results files.

    Of a run folder it takes results.json. Runs of different seeds are averaged if all their other
    settings are equal.
    """
    from evaluation.report.write import write_report

    click.echo(f"wrote {out} and {write_report(results, out, png, data, overwrite)}")


def main() -> None:
    """Entry point of `eoid-eval`."""
    run_command(evaluation)
