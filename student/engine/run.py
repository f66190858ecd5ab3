"""A student's run from start to results: the folder, the training, the test evaluation."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from evaluation.results import Results
from pipeline.utils.devices import configure_device, spare_cores
from pipeline.utils.errors import InputError
from pipeline.utils.files import sha256_of_file, write_json
from student.data.extra_data import BETWEEN
from student.data.few_shot import shot_list
from student.engine.checkpoint import SHOTS, WAYS, Start, claimed, goes_on, recorded
from student.engine.evaluate import Evaluated, evaluate_model
from student.engine.metrics_log import METRICS
from student.engine.run_inputs import Material, Wanted, crowded_line, gather_material
from student.engine.trainer import Trainer, Upkeep
from student.models.detector import HOIDetector
from student.utils.distributed import Execution, Team, join_team
from student.utils.preemption import StopSignals
from student.weights.checkpoint_file import BEST, checkpoint_path, load_checkpoint, restore
from student.weights.pretrained import INIT, Started, start_from


@dataclass(frozen=True)
class RunConfig:
    """What `eoid-train student` was asked for.

    Attributes:
        wanted: data, cache and recipe.
        out: run folder.
        init: weights to start from, None for random ones.
        device: where to train.
        workers: processes that prepare samples; None takes the spare cores.
        accumulation, compiled: see `student.utils.distributed.Execution`.
        resume: see `student.engine.checkpoint.find_start`.
        checkpoint_minutes, log_every, tensorboard: see `student.engine.trainer.Upkeep`.
        overwrite: replace another run in `out`.
        name: what the report calls the run; the folder's name by default.
    """

    wanted: Wanted
    out: Path
    init: Path | None = None
    device: str = "auto"
    workers: int | None = None
    accumulation: int = 1
    compiled: bool = False
    resume: str = "auto"
    checkpoint_minutes: float = 15.0
    log_every: int = 10
    tensorboard: bool = False
    overwrite: bool = False
    name: str | None = None

    def execution(self, processes: int) -> dict[str, Any]:
        """What the result does not depend on, for the run's folder."""
        given = {name: value for name, value in vars(self).items() if name not in ("wanted", "out")}
        places = {"data": self.wanted.data, "cache": self.wanted.cache, "init": self.init}
        paths: dict[str, Any] = {
            name: None if path is None else str(path) for name, path in places.items()
        }
        paths["extra"] = [f"{one.data}{BETWEEN}{one.cache}" for one in self.wanted.extra]
        return {**given, **paths, "preset": self.wanted.preset, "processes": processes}


def run_student(config: RunConfig) -> Results | None:
    """Trains a student, or goes on where its run stands, and evaluates it on the test part.

    Returns:
        The results; None in every process of the run but the first.

    Raises:
        InputError: dataset, cache, split or run folder do not fit.
        KeyboardInterrupt, SystemExit: asked to stop; the state is saved.
    """
    with (
        StopSignals() as signals,
        join_team(config.device) as (team, device),
        ExitStack() as held,
    ):
        material = gather_material(config.wanted, team)
        train = material.recipe.train
        configure_device(device, train.precision)
        torch.manual_seed(train.seed)
        model = HOIDetector(material.recipe.model)
        if material.texts is not None:
            material.texts.tell(model.verb_head)
        vocabulary = material.dataset.vocabulary
        digest = team.from_first(lambda: _init_digest(config))
        plan = material.plan(digest, None if config.resume in WAYS else config.resume)
        begins = config.resume in WAYS and not team.from_first(
            lambda: goes_on(config.out, plan, config.resume)
        )
        started = start_from(model, config.init, vocabulary) if begins and config.init else None
        claim = claimed(
            config.out, plan, config.execution(team.size), config.overwrite, config.resume
        )
        start = team.from_first(lambda: held.enter_context(claim))
        workers = spare_cores(config.workers, processes=team.local_size)
        execution = Execution(device, team, workers, config.accumulation, config.compiled)
        upkeep = Upkeep(config.checkpoint_minutes, config.log_every, config.tensorboard, plan)
        trainer = Trainer(
            material.recipe,
            model,
            material.images,
            vocabulary,
            material.split,
            config.out,
            execution,
            upkeep,
            material.held_out,
            [one.images for one in material.extra],
        )
        if config.init and not checkpoint_path(config.init).is_file():
            team.say(f"{config.init}: not there any more, and not needed to go on")
        _begin(trainer, start, started)
        if line := crowded_line(
            material.images.annotations,
            material.split,
            vocabulary,
            model.config.num_queries,
            material.images.shown,
        ):
            team.say(line)
        _tell_shots(config.out, material, team)
        trainer.train(signals)
        return _finish(config, material, trainer)


def _init_digest(config: RunConfig) -> str | None:
    """The SHA-256 of the file to start from; a run that has begun no longer needs the file.

    Raises:
        InputError: the file is not there, and the run has not begun.
    """
    if config.init is None:
        return None
    file = checkpoint_path(config.init)
    if file.is_file():
        return sha256_of_file(file)
    digest = recorded(config.out, "init")
    if digest is None:
        raise InputError(f"{file}: no such file")
    return digest


def _tell_shots(run: Path, material: Material, team: Team) -> None:
    """Lists the unseen labels that the run may see, in its folder and in one line."""
    train, images = material.recipe.train, material.images
    if not train.shots:
        return
    shots = shot_list(images.annotations, images.shown, material.dataset.vocabulary)
    if team.first:
        write_json(run / SHOTS, shots)
    team.say(
        f"{len(shots)} labels of {len(material.split.unseen)} unseen interactions are seen,"
        f" at most {train.shots} of each: {run / SHOTS}"
    )


def _begin(trainer: Trainer, start: Start, started: Started | None) -> None:
    team = trainer.execution.team
    if started is not None and team.first:
        write_json(trainer.run / INIT, started.to_dict())
    if start.line:
        team.say(start.line)
    if start.checkpoint is None:
        team.say("\n".join(started.lines() if started else ["start: random weights"]))
        return
    trainer.state.resume(load_checkpoint(start.checkpoint), start.checkpoint)
    team.say(f"{trainer.run}: goes on at step {trainer.step} of {trainer.total_steps}")


def _finish(config: RunConfig, material: Material, trainer: Trainer) -> Results | None:
    """The evaluation on the test part, with the checkpoint that the recipe keeps."""
    recipe, split, out = material.recipe, material.split, config.out
    predictor, team = trainer.predictor, trainer.execution.team
    if recipe.train.keep == "best":
        best = restore(load_checkpoint(out / BEST), out / BEST)
        predictor = replace(predictor, model=best)
        team.say(f"{BEST}: of step {load_checkpoint(out / BEST).state['step']}")
    source = Evaluated(
        name=config.name or out.resolve().name,
        split=split,
        training_split=split.name,
        protocol=recipe.targets.candidates,
        distillation=recipe.targets.distillation,
        seed=recipe.train.seed,
        metrics_log=out / METRICS,
        shots=recipe.train.shots,
        sources=material.sources,
    )
    return evaluate_model(
        predictor,
        material.dataset,
        source,
        out,
        trainer.execution,
        skip_unreadable=config.wanted.skip_unreadable,
    )
