"""The `eoid-cache` command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli import config_option, device_option, run_command
from pipeline.errors import InputError
from teacher_cache.cli_caches import COMMANDS
from teacher_cache.cluster.cli import cluster_options

if TYPE_CHECKING:
    from teacher_cache.cluster.modes import Mode
    from teacher_cache.cluster.share import Share

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
    "--candidates",
    type=click.Choice(["detector", "annotated"]),
    default="detector",
    show_default=True,
    help="Which boxes form pairs: a detector's, or all annotated ones (the published protocol).",
)
@click.option(
    "--detector",
    metavar="NAME",
    help="A detection model of torchvision, or world.  [default: the dataset's own, or"
    " fasterrcnn_resnet50_fpn_v2]",
)
@click.option(
    "--detector-weights",
    metavar="FILE|ENTRY",
    help="A weights file, or one of torchvision's weights entries.",
)
@click.option(
    "--detector-classes",
    metavar="coco80|hico80|FILE",
    help="What the classes of a weights file are that has neither COCO's 91 nor the vocabulary's:"
    " COCO's 80 objects in COCO's order, in HICO's (the alphabet's), or one name a line. Class 0 is"
    " the background.",
)
@click.option(
    "--proposals",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Detections in COCO's results form (JSON), in the place of a detector.",
)
@click.option(
    "--clip-model",
    metavar="NAME|FOLDER",
    help="A model of open_clip, an hf-hub: name, or a folder in open_clip's layout.  [default: the"
    " dataset's own, or RN50x16]",
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
    help="Sentence with {ing} and {object}; give several to average them.  [default: a picture of"
    " person {ing} {object}]",
)
@click.option(
    "--level",
    type=click.Choice(["region", "image"]),
    default="region",
    show_default=True,
    help="What the teacher sees of a pair: its union box, or the whole image.",
)
@click.option(
    "--region",
    default="pad",
    show_default=True,
    metavar="pad|stretch|context=F",
    help="How that becomes the teacher's square input: with black bars, stretched, or with bars"
    " around a box grown F-fold.",
)
@click.option("--person-threshold", type=SCORE, help="Lowest score of a person.  [default: 0.2]")
@click.option("--object-threshold", type=SCORE, help="Of the other partner.  [default: 0.2]")
@click.option("--max-people", type=COUNT, help="Per image, the best ones.  [default: 15]")
@click.option("--max-objects", type=COUNT, help="Per image, the best ones.  [default: 15]")
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
@click.option("--embeddings/--no-embeddings", default=True, show_default=True)
@click.option("--strict", is_flag=True, help="Refuse blemishes and unreadable images.")
@device_option
@cluster_options
@config_option
def build(
    dataset: Path,
    out: Path,
    part: str,
    candidates: str,
    detector: str | None,
    detector_weights: str | None,
    detector_classes: str | None,
    proposals: Path | None,
    clip_model: str | None,
    clip_weights: str | None,
    precision: str,
    templates: tuple[str, ...],
    level: str,
    region: str,
    person_threshold: float | None,
    object_threshold: float | None,
    max_people: int | None,
    max_objects: int | None,
    images_per_shard: int,
    batch_size: int | None,
    detector_batch_size: int,
    embeddings: bool,
    strict: bool,
    device: str,
    mode: Mode | None,
    share: Share | None,
    threads: int | None,
    dry_run: bool,
) -> None:
    """Ask the teacher about every image of DATASET; the same command goes on after a stop."""
    from teacher_cache import build as builder
    from teacher_cache.answering import AskingConfig
    from teacher_cache.build_config import BuildConfig
    from teacher_cache.cluster.run import job_script
    from teacher_cache.detector_files import class_names
    from teacher_cache.interrupts import terminated_like_interrupted
    from teacher_cache.pairing import PairingConfig
    from teacher_cache.prompts import TEMPLATE
    from teacher_cache.regions import RegionMode

    bounds: dict[str, Any] = {
        "person_threshold": person_threshold,
        "object_threshold": object_threshold,
        "max_people": max_people,
        "max_objects": max_objects,
    }
    given = {name: value for name, value in bounds.items() if value is not None}
    if candidates == "annotated" and given:
        option = f"--{next(iter(given)).replace('_', '-')}"
        raise InputError(f"{option}: expected none with --candidates annotated, which pairs all")
    config = BuildConfig(
        dataset=dataset,
        out=out,
        part=part,
        candidates=candidates,
        proposals=proposals,
        detector=detector,
        detector_weights=detector_weights,
        detector_classes=None if detector_classes is None else class_names(detector_classes),
        clip_model=clip_model,
        clip_weights=clip_weights,
        precision=precision,
        templates=templates or (TEMPLATE,),
        asking=AskingConfig(
            pairing=PairingConfig(**given),
            level=level,
            region=RegionMode.parse(region),
            images_per_batch=detector_batch_size,
            regions_per_batch=batch_size,
            embeddings=embeddings,
            strict=strict,
        ),
        images_per_shard=images_per_shard,
        mode=mode,
        share=share,
        threads=threads,
        device=device,
    )
    if dry_run:
        click.echo(job_script(config.mode, out), nl=False)
        return
    with terminated_like_interrupted():
        builder.build(config)


@cache.command("batch-scripts")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace scripts that are there.")
@config_option
def batch_scripts(folder: Path, overwrite: bool) -> None:
    """Copy ready scripts for SLURM into DIR."""
    from pipeline.batch_scripts import copy_scripts
    from teacher_cache import batch

    for path in copy_scripts(batch.__name__, batch.SCRIPTS, folder, overwrite):
        click.echo(path)


@cache.command("world-models")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--only", type=click.Choice(["teacher", "detector"]), help="One of the two.")
@click.option("--pictures", type=COUNT, help="Pictures that both learn from.  [default: 3000]")
@click.option("--teacher-steps", type=COUNT, help="Length of its training.  [default: 500]")
@click.option("--detector-epochs", type=COUNT, help="Length of its training.  [default: 4]")
@click.option(
    "--template",
    "templates",
    multiple=True,
    metavar="TEXT",
    help="Sentence with {ing} and {object} that the teacher learns; give several for a teacher of"
    " several.  [default: a picture of person {ing} {object}]",
)
@device_option
@config_option
def world_models(
    folder: Path,
    seed: int,
    only: str | None,
    pictures: int | None,
    teacher_steps: int | None,
    detector_epochs: int | None,
    templates: tuple[str, ...],
    device: str,
) -> None:
    """Train the embedded world's teacher and detector into FOLDER."""
    from dataclasses import replace

    from teacher_cache.world_models.train import WorldModels, train_world_models

    config = WorldModels(seed=seed)
    if only is not None:
        config = replace(config, wanted=(only,))
    if pictures is not None:
        config = replace(config, pictures=pictures)
    if teacher_steps is not None:
        config = replace(config, teacher=replace(config.teacher, steps=teacher_steps))
    if detector_epochs is not None:
        config = replace(config, detector=replace(config.detector, epochs=detector_epochs))
    if templates:
        config = replace(config, templates=templates)
    train_world_models(folder, config, device)


for command in COMMANDS:
    cache.add_command(command)


def main() -> None:
    """Entry point of `eoid-cache`."""
    run_command(cache)
