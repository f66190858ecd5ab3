"""Trains the embedded world's teacher and detector side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pipeline.cores import usable_cores
from pipeline.devices import autocast, configure_device, resolve_device
from pipeline.errors import InputError
from pipeline.files import differing_keys, read_json, replacing, write_json
from pipeline.world.scene import world_vocabulary
from pipeline.world.write import DRAWING
from teacher_cache.clip_teacher import FOLDER_WEIGHTS, save_clip
from teacher_cache.prompts import TEMPLATE, interaction_prompts
from teacher_cache.world_models.data import ModelPictures, draw_model_pictures
from teacher_cache.world_models.detector import DetectorTraining, train_detector
from teacher_cache.world_models.processes import Report, run_side_by_side
from teacher_cache.world_models.teacher import (
    CONTEXT_LENGTH,
    IMAGE_SIZE,
    MEAN,
    STD,
    TeacherTraining,
    clip_config,
    train_teacher,
)
from teacher_cache.world_models.tokenizer import WordTokenizer

PLAN, DETECTOR, TEACHER = "world_models.json", "detector.safetensors", "teacher"
MODELS = ("teacher", "detector")


@dataclass(frozen=True)
class WorldModels:
    """What is trained, and on what.

    Attributes:
        pictures: how many pictures of the world's part "models" are drawn.
        seed: of pictures and training.
        teacher, detector: the recipes.
        precision: see `pipeline.devices.autocast`.
        templates: sentences that the teacher learns, each region with one of them.
        wanted: which of `MODELS` are trained.
    """

    pictures: int = 3000
    seed: int = 0
    teacher: TeacherTraining = field(default_factory=TeacherTraining)
    detector: DetectorTraining = field(default_factory=DetectorTraining)
    precision: str = "auto"
    templates: tuple[str, ...] = (TEMPLATE,)
    wanted: tuple[str, ...] = MODELS

    def plan(self) -> dict[str, Any]:
        """What the trained weights depend on."""
        plan = {"drawing": DRAWING, **asdict(self), "templates": list(self.templates)}
        del plan["wanted"]
        if self.templates == (TEMPLATE,):
            # Models of the time before there was a choice are still these.
            del plan["templates"]
        return plan


def train_world_models(folder: Path, config: WorldModels, device: str) -> None:
    """Trains both models into `folder`: `detector.safetensors` and `teacher/`.

    Each trains in a process of its own with half of the cores, which uses them better than one
    small model after the other could. A model that is already there is not trained again.

    Raises:
        InputError: the folder holds models of another seed or recipe.
    """
    resolve_device(device)
    interaction_prompts(world_vocabulary(), config.templates)
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, config.plan())
    wanted: dict[str, tuple[Callable[..., None], int]] = {}
    if "teacher" in config.wanted and not (folder / TEACHER / FOLDER_WEIGHTS).is_file():
        wanted["teacher"] = (_teach, config.teacher.steps * config.teacher.batch_size)
    if "detector" in config.wanted and not (folder / DETECTOR).is_file():
        used = config.pictures - config.pictures % config.detector.batch_size
        wanted["detector"] = (_detect, config.detector.epochs * used)
    if not wanted:
        verb = "are" if len(config.wanted) > 1 else "is"
        print(f"{folder}: {' and '.join(config.wanted)} {verb} there already")
        return
    pictures = draw_model_pictures(config.seed, config.pictures, IMAGE_SIZE, config.templates)
    threads = max(1, usable_cores() // len(wanted))
    run_side_by_side(
        {
            name: (partial(work, pictures, folder, config, device, threads), total)
            for name, (work, total) in wanted.items()
        }
    )


def _claim(folder: Path, plan: dict[str, Any]) -> None:
    """Makes the folder this plan's.

    Raises:
        InputError: it is another's.
    """
    if (folder / PLAN).is_file():
        found = read_json(folder / PLAN)
        if found != plan:
            held = found if isinstance(found, dict) else {}
            changed = differing_keys(found, {**dict.fromkeys(held), **plan})
            raise InputError(
                f"{folder}: holds models with another {' and '.join(changed)}; name a new folder"
            )
    elif any(folder.iterdir()):
        raise InputError(
            f"{folder}: expected a new folder or the world's models, found other files"
        )
    write_json(folder / PLAN, plan)


def _teach(
    pictures: ModelPictures,
    folder: Path,
    config: WorldModels,
    device: str,
    threads: int,
    report: Report,
) -> None:
    torch.set_num_threads(threads)
    place = configure_device(resolve_device(device), config.precision)
    vocabulary = world_vocabulary()
    prompts = interaction_prompts(vocabulary, config.templates)
    words = sorted({word for group in prompts for prompt in group for word in prompt.split()})
    tokenizer = WordTokenizer(words, CONTEXT_LENGTH)
    model = train_teacher(
        torch.from_numpy(pictures.crops).permute(0, 3, 1, 2).contiguous(),
        pictures.captions,
        tokenizer,
        config.teacher,
        torch.Generator().manual_seed(config.seed),
        place,
        partial(autocast, place, config.precision),
        partial(report, config.teacher.batch_size),
    )
    save_clip(
        folder / TEACHER,
        model,
        clip_config(tokenizer),
        {"mean": list(MEAN), "std": list(STD)},
        tokenizer,
    )


def _detect(
    pictures: ModelPictures,
    folder: Path,
    config: WorldModels,
    device: str,
    threads: int,
    report: Report,
) -> None:
    torch.set_num_threads(threads)
    place = configure_device(resolve_device(device), config.precision)
    model = train_detector(
        torch.from_numpy(pictures.images).permute(0, 3, 1, 2).contiguous(),
        pictures.annotations,
        world_vocabulary(),
        config.detector,
        torch.Generator().manual_seed(config.seed),
        place,
        partial(autocast, place, config.precision),
        report,
    )
    state = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    with replacing(folder / DETECTOR) as temporary:
        save_file(state, temporary)
