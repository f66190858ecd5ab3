"""The `eoid-cache` command."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.cli import config_option, device_option, run_command
from teacher_cache.cli_caches import COMMANDS

COUNT = click.IntRange(min=1)
SCORE = click.FloatRange(0, 1)


@click.group()
def cache() -> None:
    """Phase one: ask detector and CLIP once, keep the answers."""


@cache.command()
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The cache folder.")
@click.option("--part", type=click.Choice(["train", "test"]), default="train", show_default=True)
@click.option(
    "--detector",
    metavar="NAME",
    help="A detection model of torchvision, or world. Default: the dataset's own, or"
    " fasterrcnn_resnet50_fpn_v2.",
)
@click.option(
    "--detector-weights",
    metavar="FILE|ENTRY",
    help="A weights file, or one of torchvision's weights entries.",
)
@click.option(
    "--clip-model",
    metavar="NAME|FOLDER",
    help="A model of open_clip, an hf-hub: name, or a folder in open_clip's layout. Default: the"
    " dataset's own, or RN50x16.",
)
@click.option("--clip-weights", metavar="TAG|FILE", help="A pretrained tag or a checkpoint file.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "float16", "bfloat16"]),
    default="auto",
    help="Of CLIP's image tower; it decides answers. auto is float16 on a GPU, else float32.",
)
@click.option(
    "--template",
    "templates",
    multiple=True,
    metavar="TEXT",
    help='Sentence with {ing} and {object}; several are averaged. Default: "a picture of person'
    ' {ing} {object}".',
)
@click.option(
    "--region",
    default="pad",
    show_default=True,
    metavar="pad|stretch|context=F",
    help="How a pair's union box becomes the teacher's square input.",
)
@click.option("--person-threshold", type=SCORE, default=0.2, show_default=True)
@click.option("--object-threshold", type=SCORE, default=0.2, show_default=True)
@click.option("--max-people", type=COUNT, default=15, show_default=True, help="Per image.")
@click.option("--max-objects", type=COUNT, default=15, show_default=True, help="Per image.")
@click.option("--images-per-shard", type=COUNT, default=256, show_default=True)
@click.option(
    "--batch-size",
    type=COUNT,
    show_default="64, on a GPU 256",
    help="Regions for CLIP at once.",
)
@click.option(
    "--detector-batch-size",
    type=COUNT,
    default=16,
    show_default=True,
    help="Images of one size for the detector at once.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Processes; 0 works in this one.",
)
@click.option("--embeddings/--no-embeddings", default=True, show_default=True)
@click.option("--strict", is_flag=True, help="Refuse blemishes and unreadable images.")
@device_option
@config_option
def build(
    dataset: Path,
    out: Path,
    part: str,
    detector: str | None,
    detector_weights: str | None,
    clip_model: str | None,
    clip_weights: str | None,
    precision: str,
    templates: tuple[str, ...],
    region: str,
    person_threshold: float,
    object_threshold: float,
    max_people: int,
    max_objects: int,
    images_per_shard: int,
    batch_size: int | None,
    detector_batch_size: int,
    workers: int,
    embeddings: bool,
    strict: bool,
    device: str,
) -> None:
    """Ask the teacher about every image of DATASET; the same command goes on after a stop."""
    from teacher_cache import build as builder
    from teacher_cache.answering import AskingConfig
    from teacher_cache.pairing import PairingConfig
    from teacher_cache.prompts import TEMPLATE
    from teacher_cache.regions import RegionMode

    builder.build(
        builder.BuildConfig(
            dataset=dataset,
            out=out,
            part=part,
            detector=detector,
            detector_weights=detector_weights,
            clip_model=clip_model,
            clip_weights=clip_weights,
            precision=precision,
            templates=templates or (TEMPLATE,),
            asking=AskingConfig(
                pairing=PairingConfig(person_threshold, object_threshold, max_people, max_objects),
                region=RegionMode.parse(region),
                images_per_batch=detector_batch_size,
                regions_per_batch=batch_size,
                embeddings=embeddings,
                strict=strict,
            ),
            images_per_shard=images_per_shard,
            workers=workers,
            device=device,
        )
    )


@cache.command("world-models")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@device_option
@config_option
def world_models(folder: Path, seed: int, device: str) -> None:
    """Train the embedded world's teacher and detector into FOLDER."""
    from teacher_cache.world_models.train import WorldModels, train_world_models

    train_world_models(folder, WorldModels(seed=seed), device)


for command in COMMANDS:
    cache.add_command(command)


def main() -> None:
    """Entry point of `eoid-cache`."""
    run_command(cache)
