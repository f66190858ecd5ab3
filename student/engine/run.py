"""A student's run from start to results: the folder, the training, the test evaluation."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from evaluation.results import Results
from pipeline.utils.devices import configure_device, default_num_workers
from pipeline.utils.errors import InputError
from pipeline.utils.files import sha256_of_file, write_json
from pipeline.utils.logging import get_logger
from student.data.extra_data import SEPARATOR
from student.data.few_shot import list_few_shot
from student.engine.checkpoint import (
    FEW_SHOT_FILE,
    RESUME_MODES,
    ResumePoint,
    claim_run_folder,
    is_resumable,
    read_plan_entry,
)
from student.engine.evaluate import ModelInfo, evaluate_model
from student.engine.metrics_log import METRICS
from student.engine.run_inputs import RunRequest, RunSetup, build_inputs, query_overflow_line
from student.engine.trainer import LoggingConfig, Trainer
from student.models.detector import HOIDetector
from student.utils.distributed import DistContext, Execution, init_distributed
from student.utils.preemption import StopSignalHandler
from student.weights.checkpoint_file import BEST, build_model, checkpoint_path, load_checkpoint
from student.weights.pretrained import LOAD_REPORT, LoadReport, load_pretrained

logger = get_logger(__name__)


@dataclass(frozen=True)
class RunConfig:
    """What `eoid-train student` was asked for.

    Attributes:
        request: data, cache and recipe.
        out: run folder.
        pretrained: weights to start from, None for random ones.
        device: where to train.
        workers: processes that prepare samples; None takes the spare cores.
        accumulation, compiled: see `student.utils.distributed.Execution`.
        resume: see `student.engine.checkpoint.find_resume_point`.
        checkpoint_minutes, log_every, tensorboard: see `student.engine.trainer.LoggingConfig`.
        overwrite: replace another run in `out`.
        name: what the report calls the run; the folder's name by default.
    """

    request: RunRequest
    out: Path
    pretrained: Path | None = None
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

    def execution_settings(self, processes: int) -> dict[str, Any]:
        """What the result does not depend on, for the run's folder."""
        given = {
            name: value for name, value in vars(self).items() if name not in ("request", "out")
        }
        places = {
            "data": self.request.data,
            "cache": self.request.cache,
            "pretrained": self.pretrained,
        }
        paths: dict[str, Any] = {
            name: None if path is None else str(path) for name, path in places.items()
        }
        paths["extra_data"] = [f"{one.data}{SEPARATOR}{one.cache}" for one in self.request.extra]
        return {**given, **paths, "preset": self.request.preset, "processes": processes}


def run_student(config: RunConfig) -> Results | None:
    """Trains a student, or goes on where its run stands, and evaluates it on the test part.

    Returns:
        The results; None in every process of the run but the first.

    Raises:
        InputError: dataset, cache, split or run folder do not fit.
        KeyboardInterrupt, SystemExit: asked to stop; the state is saved.
    """
    with (
        StopSignalHandler() as signals,
        init_distributed(config.device) as (context, device),
        ExitStack() as held,
    ):
        setup = build_inputs(config.request, context)
        train = setup.recipe.train
        configure_device(device, train.precision)
        torch.manual_seed(train.seed)
        model = HOIDetector(setup.recipe.model)
        if setup.texts is not None:
            setup.texts.apply(model.verb_head)
        vocabulary = setup.dataset.vocabulary
        digest = context.broadcast(lambda: _init_digest(config))
        plan = setup.plan(digest, None if config.resume in RESUME_MODES else config.resume)
        begins = config.resume in RESUME_MODES and not context.broadcast(
            lambda: is_resumable(config.out, plan, config.resume)
        )
        report = (
            load_pretrained(model, config.pretrained, vocabulary)
            if begins and config.pretrained
            else None
        )
        claim = claim_run_folder(
            config.out,
            plan,
            config.execution_settings(context.world_size),
            config.overwrite,
            config.resume,
        )
        start = context.broadcast(lambda: held.enter_context(claim))
        workers = default_num_workers(config.workers, processes=context.local_world_size)
        execution = Execution(device, context, workers, config.accumulation, config.compiled)
        logging_config = LoggingConfig(
            config.checkpoint_minutes, config.log_every, config.tensorboard, plan
        )
        trainer = Trainer(
            setup.recipe,
            model,
            setup.images,
            vocabulary,
            setup.split,
            config.out,
            execution,
            logging_config,
            setup.validator,
            [one.images for one in setup.extra],
        )
        if config.pretrained and not checkpoint_path(config.pretrained).is_file():
            logger.info(f"{config.pretrained}: not there any more, and not needed to go on")
        _restore(trainer, start, report)
        if line := query_overflow_line(
            setup.images.annotations,
            setup.split,
            vocabulary,
            model.config.num_queries,
            setup.images.few_shot_rows,
        ):
            logger.warning(line)
        _log_few_shot(config.out, setup, context)
        trainer.train(signals)
        return _evaluate_test(config, setup, trainer)


def _init_digest(config: RunConfig) -> str | None:
    """The SHA-256 of the file to start from; a run that has begun no longer needs the file.

    Raises:
        InputError: the file is not there, and the run has not begun.
    """
    if config.pretrained is None:
        return None
    file = checkpoint_path(config.pretrained)
    if file.is_file():
        return sha256_of_file(file)
    digest = read_plan_entry(config.out, "pretrained")
    if digest is None:
        raise InputError(f"{file}: no such file")
    return digest


def _log_few_shot(run_dir: Path, setup: RunSetup, context: DistContext) -> None:
    """Lists the unseen labels that the run may see, in its folder and in one line."""
    train, images = setup.recipe.train, setup.images
    if not train.shots:
        return
    shots = list_few_shot(images.annotations, images.few_shot_rows, setup.dataset.vocabulary)
    if context.is_main_process:
        write_json(run_dir / FEW_SHOT_FILE, shots)
    logger.info(
        f"{len(shots)} labels of {len(setup.split.unseen)} unseen interactions are seen,"
        f" at most {train.shots} of each: {run_dir / FEW_SHOT_FILE}"
    )


def _restore(trainer: Trainer, start: ResumePoint, report: LoadReport | None) -> None:
    context = trainer.execution.context
    if report is not None and context.is_main_process:
        write_json(trainer.run_dir / LOAD_REPORT, report.to_dict())
    if start.message:
        logger.info(start.message)
    if start.checkpoint is None:
        for line in report.lines() if report else ["start: random weights"]:
            logger.info(line)
        return
    trainer.state.resume(load_checkpoint(start.checkpoint), start.checkpoint)
    logger.info(f"{trainer.run_dir}: goes on at step {trainer.step} of {trainer.total_steps}")


def _evaluate_test(config: RunConfig, setup: RunSetup, trainer: Trainer) -> Results | None:
    """The evaluation on the test part, with the checkpoint that the recipe keeps."""
    recipe, split, out = setup.recipe, setup.split, config.out
    predictor = trainer.predictor
    if recipe.train.keep == "best":
        best = build_model(load_checkpoint(out / BEST), out / BEST)
        predictor = replace(predictor, model=best)
        logger.info(f"{BEST}: of step {load_checkpoint(out / BEST).state['step']}")
    info = ModelInfo(
        name=config.name or out.resolve().name,
        split=split,
        training_split=split.name,
        protocol=recipe.targets.candidates,
        distillation=recipe.targets.distillation,
        seed=recipe.train.seed,
        metrics_log=out / METRICS,
        shots=recipe.train.shots,
        sources=setup.sources,
    )
    return evaluate_model(
        predictor,
        setup.dataset,
        info,
        out,
        trainer.execution,
        skip_unreadable=config.request.skip_unreadable,
    )
