"""Scoring options that `eoid-eval` and `eoid-train` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from pipeline.utils.cli_options import FloatRange, option

if TYPE_CHECKING:
    from evaluation.hico.nms import NmsConfig
    from evaluation.score_hico import ScoringConfig

details_option = option(
    "--show",
    "details",
    type=click.Choice(["splits", "verbs", "objects", "interactions"]),
    multiple=True,
    help="Also print this table. Can be given several times.",
)


def nms_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that `build_nms_config` takes."""
    for name, kind, default, text in (
        ("object-power", FloatRange(min=0), "0.5", "exponent of the object boxes' IoU."),
        ("human-power", FloatRange(min=0), "1", "exponent of the human boxes' IoU."),
        ("threshold", FloatRange(0, 1), "0.7", "maximum pairwise IoU."),
    ):
        help_text = f"With --nms: {text}"
        command = option(f"--nms-{name}", type=kind, show_default=default, help=help_text)(command)
    text = "Apply pairwise non-maximum suppression first."
    return option("--nms", is_flag=True, help=text)(command)


def build_nms_config(nms: bool, **options: float | None) -> NmsConfig | None:
    """The options of `nms_options` as a config; None without --nms.

    Raises:
        click.UsageError: NMS settings without NMS.
    """
    from evaluation.hico.nms import NmsConfig

    given = {
        name.removeprefix("nms_"): value for name, value in options.items() if value is not None
    }
    if given and not nms:
        raise click.UsageError("--nms-threshold and the --nms-*-power options need --nms.")
    return NmsConfig(**given) if nms else None


def scoring_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that `build_scoring_config` takes."""
    return option(
        "--setting",
        type=click.Choice(["default", "known-object", "both"]),
        default="both",
        show_default=True,
        help=(
            "Evaluation setting: all images for every class, or only those that contain its object."
        ),
    )(nms_options(command))


def build_scoring_config(setting: str, **options: Any) -> ScoringConfig:
    """The options of `scoring_options` as a config.

    Raises:
        click.UsageError: NMS settings without NMS.
    """
    from evaluation.score_hico import SETTINGS_OF_OPTION, ScoringConfig

    return ScoringConfig(SETTINGS_OF_OPTION[setting], build_nms_config(**options))
