"""A run of `eoid-train student`: inputs, run folder, training, evaluation on the test part."""

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
from student.engine.run_inputs import RunInputs, RunRequest, build_inputs, query_overflow_message
from student.engine.trainer import Trainer, TrainerConfig
from student.models.detector import HOIDetector
from student.utils.distributed import DistContext, Execution, init_distributed
from student.utils.preemption import StopSignalHandler
from student.weights.checkpoint_file import BEST, build_model, checkpoint_path, load_checkpoint
from student.weights.pretrained import LOAD_REPORT, LoadReport, load_pretrained

logger = get_logger(__name__)


@dataclass(frozen=True)
class RunConfig:
    """Settings of a run.

    Attributes:
        request: requested dataset, cache, split and recipe.
        out: run folder.
        pretrained: file of pretrained weights; None initialises randomly.
        device: device to train on.
        workers: number of DataLoader workers per process; None takes the spare cores.
        accumulation, compiled: see `student.utils.distributed.Execution`.
        resume: see `student.engine.checkpoint.find_resume_point`.
        checkpoint_minutes, log_every, tensorboard: see `student.engine.trainer.TrainerConfig`.
        overwrite: replace another run in `out`.
        name: name of the run in reports; None takes the folder's name.
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
        """Settings that do not change the result, for the record in `config.json`."""
        settings = {
            name: value for name, value in vars(self).items() if name not in ("request", "out")
        }
        files = {
            "data": self.request.data,
            "cache": self.request.cache,
            "pretrained": self.pretrained,
        }
        paths: dict[str, Any] = {
            name: None if path is None else str(path) for name, path in files.items()
        }
        paths["extra_data"] = [
            f"{extra.data}{SEPARATOR}{extra.cache}" for extra in self.request.extra_data
        ]
        return {**settings, **paths, "preset": self.request.preset, "processes": processes}


def run_student(config: RunConfig) -> Results | None:
    """Trains a student, or resumes its training, and evaluates it on the test part.

    Returns:
        The results in the main process, None in the others.

    Raises:
        InputError: an input or the run folder cannot be used, or a loss is not finite.
        KeyboardInterrupt, SystemExit: a stop was requested; the state is saved.
    """
    with (
        StopSignalHandler() as signals,
        init_distributed(config.device) as (context, device),
        ExitStack() as stack,
    ):
        inputs = build_inputs(config.request, context)
        train = inputs.recipe.train
        configure_device(device, train.precision)
        torch.manual_seed(train.seed)
        model = HOIDetector(inputs.recipe.model)
        if inputs.text_init is not None:
            inputs.text_init.apply(model.verb_head)
        vocabulary = inputs.dataset.vocabulary
        digest = context.broadcast(lambda: _pretrained_digest(config))
        plan = inputs.plan(digest, None if config.resume in RESUME_MODES else config.resume)
        is_new = config.resume in RESUME_MODES and not context.broadcast(
            lambda: is_resumable(config.out, plan, config.resume)
        )
        report = (
            load_pretrained(model, config.pretrained, vocabulary)
            if is_new and config.pretrained
            else None
        )
        claim = claim_run_folder(
            config.out,
            plan,
            config.execution_settings(context.world_size),
            config.overwrite,
            config.resume,
        )
        start = context.broadcast(lambda: stack.enter_context(claim))
        workers = default_num_workers(config.workers, processes=context.local_world_size)
        execution = Execution(device, context, workers, config.accumulation, config.compiled)
        trainer_config = TrainerConfig(
            config.checkpoint_minutes, config.log_every, config.tensorboard, plan
        )
        trainer = Trainer(
            inputs.recipe,
            model,
            inputs.images,
            vocabulary,
            inputs.split,
            config.out,
            execution,
            trainer_config,
            inputs.validator,
            [extra.images for extra in inputs.extra_datasets],
        )
        if config.pretrained and not checkpoint_path(config.pretrained).is_file():
            logger.info(f"{config.pretrained}: no such file, and not needed to resume")
        _start(trainer, start, report)
        if message := query_overflow_message(
            inputs.images.annotations,
            inputs.split,
            vocabulary,
            model.config.num_queries,
            inputs.images.few_shot_rows,
        ):
            logger.warning(message)
        _log_few_shot(config.out, inputs, context)
        trainer.train(signals)
        return _evaluate_test(config, inputs, trainer)


def _pretrained_digest(config: RunConfig) -> str | None:
    """SHA-256 of the pretrained weights, from the run's `config.json` if the file was removed.

    Raises:
        InputError: the file does not exist, and the run has no checkpoint.
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


def _log_few_shot(run_dir: Path, inputs: RunInputs, context: DistContext) -> None:
    """Writes the few-shot labels to the run folder and logs their number."""
    train, images = inputs.recipe.train, inputs.images
    if not train.shots:
        return
    shots = list_few_shot(images.annotations, images.few_shot_rows, inputs.dataset.vocabulary)
    if context.is_main_process:
        write_json(run_dir / FEW_SHOT_FILE, shots)
    logger.info(
        f"few-shot: {len(shots)} labels of {len(inputs.split.unseen)} unseen interactions are used,"
        f" at most {train.shots} per interaction, listed in {run_dir / FEW_SHOT_FILE}"
    )


def _start(trainer: Trainer, start: ResumePoint, report: LoadReport | None) -> None:
    context = trainer.execution.context
    if report is not None and context.is_main_process:
        write_json(trainer.run_dir / LOAD_REPORT, report.to_dict())
    if start.message:
        logger.info(start.message)
    if start.checkpoint is None:
        for line in report.lines() if report else ["randomly initialised weights"]:
            logger.info(line)
        return
    trainer.state.resume(load_checkpoint(start.checkpoint), start.checkpoint)
    logger.info(f"{trainer.run_dir}: resuming at step {trainer.step} of {trainer.total_steps}")


def _evaluate_test(config: RunConfig, inputs: RunInputs, trainer: Trainer) -> Results | None:
    """Evaluates the last or the best checkpoint, as the recipe says, on the test part."""
    recipe, split, out = inputs.recipe, inputs.split, config.out
    predictor = trainer.predictor
    if recipe.train.keep == "best":
        best = load_checkpoint(out / BEST)
        predictor = replace(predictor, model=build_model(best, out / BEST))
        logger.info(f"evaluating {BEST} of step {best.state['step']}")
    info = ModelInfo(
        name=config.name or out.resolve().name,
        split=split,
        training_split=split.name,
        protocol=recipe.targets.candidates,
        distillation=recipe.targets.distillation,
        seed=recipe.train.seed,
        metrics_log=out / METRICS,
        shots=recipe.train.shots,
        sources=inputs.sources,
    )
    return evaluate_model(
        predictor,
        inputs.dataset,
        info,
        out,
        trainer.execution,
        skip_unreadable=config.request.skip_unreadable,
    )
