"""A run of `eoid-train student`: inputs, run folder, training, evaluation on the test part."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torchvision.transforms.v2 import functional as TF

from evaluation.drawing.samples import SAMPLES_FOLDER
from evaluation.results import RESULTS_FILE, Results, read_results
from pipeline.images import read_image
from pipeline.utils.devices import configure_device, default_num_workers
from pipeline.utils.errors import InputError
from pipeline.utils.files import is_up_to_date, sha256_of_file, write_json
from pipeline.utils.logging import get_logger
from pipeline.utils.text import count_noun
from student.data.dataset import TrainingDataset
from student.data.few_shot import list_few_shot
from student.data.text_embeddings import init_text_heads
from student.data.transforms import normalise
from student.engine.checkpointing import (
    FEW_SHOT_FILE,
    RESUME_MODES,
    claim_run_folder,
    is_resumable,
    read_plan_entry,
)
from student.engine.evaluate import describe_student, evaluate_model
from student.engine.loggers import Logger, log_evaluation, open_loggers, require_packages
from student.engine.metrics_log import METRICS
from student.engine.run_inputs import RunConfig, RunInputs, build_inputs, query_overflow_message
from student.engine.trainer import Trainer
from student.models.backbone import measure_norm_statistics, pixel_statistics
from student.models.detector import HEADS, HOIDetector
from student.utils.distributed import Execution, init_distributed
from student.utils.preemption import StopSignalHandler
from student.weights.checkpoint_file import BEST, build_model, load_checkpoint
from student.weights.pretrained import (
    DEFAULT,
    LOAD_REPORT,
    LoadReport,
    count_parts,
    load_backbone,
    load_pretrained,
    pretrained_path,
)

logger = get_logger(__name__)

# Number of images, and sides in pixels that they are resized to, for the norm statistics.
MAX_NORM_IMAGES, NORM_IMAGE_SIDES = 16, (64, 256)


def run_student(config: RunConfig) -> Results | None:
    """Trains a student, or resumes its training, and evaluates it on the test part.

    Returns:
        The results in the main process, None in the others.

    Raises:
        InputError: an input or the run folder cannot be used, or a loss is not finite.
        KeyboardInterrupt, SystemExit: a stop was requested; the state is saved.
    """
    require_packages(config.log_to)
    with (
        StopSignalHandler() as signals,
        init_distributed(config.device) as (context, device),
        ExitStack() as stack,
    ):
        inputs = build_inputs(config, context)
        recipe, vocabulary = inputs.recipe, inputs.dataset.vocabulary
        configure_device(device, recipe.train.precision)
        torch.manual_seed(recipe.train.seed)
        model = HOIDetector(recipe.model)
        if recipe.model.has_text_head:
            init_text_heads(model.text_heads, inputs.cache, vocabulary)
        source = None if config.resume in RESUME_MODES else config.resume
        digests = context.broadcast(lambda: _weights_digests(config))
        plan = inputs.plan(*digests, source)
        is_new = source is None and not context.broadcast(
            lambda: is_resumable(config.out, plan, config.resume)
        )
        report = backbone_report = None
        if is_new and config.pretrained:
            with_backbone = config.backbone_weights is None
            report = load_pretrained(model, config.pretrained, vocabulary, with_backbone)
        if is_new and config.backbone_weights:
            backbone_report = load_backbone(model, config.backbone_weights, vocabulary)
        reports = [each for each in (report, backbone_report) if each is not None]
        if is_new and recipe.train.heads_only:
            _require_trained_body(report)
        record = config.execution_settings(context.world_size)
        claim = claim_run_folder(config.out, plan, record, config.overwrite, config.resume)
        start = context.broadcast(lambda: stack.enter_context(claim))
        if start is None and not any(each.has("backbone") for each in reports):
            init_norm_statistics(model, inputs.images)
            if not recipe.train.backbone_lr_factor:
                logger.warning("the backbone is frozen, so that its random weights are not trained")
        workers = default_num_workers(config.workers, processes=context.local_world_size)
        trainer = Trainer(
            inputs,
            model,
            config.out,
            Execution(device, context, workers, config.accumulation, config.compiled),
            config.checkpoint_minutes,
            config.log_every,
            plan,
        )
        if config.pretrained and not pretrained_path(config.pretrained).is_file():
            logger.info(f"{config.pretrained}: no such file, and not needed to resume")
        if reports and context.is_main_process:
            content = {} if report is None else report.to_dict()
            if backbone_report is not None:
                content["backbone"] = backbone_report.to_dict()
            write_json(config.out / LOAD_REPORT, content)
        if start is not None:
            trainer.state.resume(load_checkpoint(start), start)
            results = config.out / RESULTS_FILE
            if trainer.is_finished and context.broadcast(
                partial(_has_results, results, start, inputs.limit)
            ):
                logger.info(f"{config.out}: this run is finished; its results are in {results}")
                return read_results(results) if context.is_main_process else None
            logger.info(f"{config.out}: resuming at step {trainer.step} of {trainer.total_steps}")
        else:
            for each in reports:
                for line in each.lines():
                    logger.info(line)
            if not reports:
                logger.info("randomly initialised weights")
        if message := query_overflow_message(inputs.images, recipe.model.num_queries):
            logger.warning(message)
        if recipe.train.shots and context.is_main_process:
            _write_few_shot(config, inputs)
        loggers: list[Logger] = []
        experiment = open_loggers(config.log_to, config.out, trainer.step, config.run_name, plan)
        # An error ends all processes.
        context.broadcast(lambda: loggers.extend(stack.enter_context(experiment)))
        trainer.train(signals, loggers)
        final = _evaluate_test(config, inputs, trainer)
        if final is not None:
            drawings = config.out / SAMPLES_FOLDER / "test"
            log_evaluation(loggers, trainer.step, "test", final.metrics, drawings)
        return final


def _require_trained_body(report: LoadReport | None) -> None:
    """Checks that everything that `heads_only` freezes has pretrained weights.

    Raises:
        InputError: there are none, or the file has none of some part.
    """
    option = "--heads-only: expected --pretrained weights of everything but the heads"
    if report is None:
        raise InputError(f"{option}, found none")
    lacking = [name for name in report.missing if not name.startswith(HEADS)]
    if lacking:
        raise InputError(
            f"{option}, found {report.kind} without {count_parts(lacking, 1)} ({report.path})"
        )


def _weights_digests(config: RunConfig) -> tuple[str | None, str | None]:
    """SHA-256 of the files of `--pretrained` and of `--backbone-weights`, see `_file_digest`."""
    backbone = config.backbone_weights
    if backbone is not None and backbone != DEFAULT:
        backbone = _file_digest(Path(backbone), config.out, "backbone_weights")
    if config.pretrained is None:
        return None, backbone
    return _file_digest(config.pretrained, config.out, "pretrained"), backbone


def _file_digest(path: Path, run_dir: Path, entry: str) -> str:
    """SHA-256 of a file of weights, from the run's `config.json` if the file was removed.

    Raises:
        InputError: the file does not exist, and the run has no checkpoint.
    """
    file = pretrained_path(path)
    if file.is_file():
        return sha256_of_file(file)
    digest = read_plan_entry(run_dir, entry)
    if digest is None:
        raise InputError(f"{file}: no such file")
    return digest


def init_norm_statistics(model: HOIDetector, images: TrainingDataset) -> None:
    """Measures the norm statistics of a backbone with random weights on some training images."""
    rows = np.random.default_rng(images.seed).permutation(len(images))[:MAX_NORM_IMAGES]
    side = int(np.clip(images.image_sizes[rows].min(), *NORM_IMAGE_SIDES))
    # Rounded up, as images are padded in training.
    side += -side % cast(int, model.backbone.size_divisible)
    pixels = [
        TF.pil_to_tensor(read_image(images.records[row].path).resize((side, side))) for row in rows
    ]
    statistics = pixel_statistics(model.backbone)
    measured = measure_norm_statistics(model.backbone, normalise(torch.stack(pixels), statistics))
    number = count_noun(len(rows), "training images")
    norms = f" and norm statistics measured on {number}" if measured else ""
    logger.info(
        f"the backbone has random weights{norms}; --pretrained or --backbone-weights loads others"
    )


def _write_few_shot(config: RunConfig, inputs: RunInputs) -> None:
    """Writes the few-shot labels to the run folder and logs their number."""
    file, images = config.out / FEW_SHOT_FILE, inputs.images
    shots = list_few_shot(images.annotations, images.few_shot_rows, images.vocabulary)
    write_json(file, shots)
    logger.info(
        f"few-shot: {count_noun(len(shots), 'labels')} of"
        f" {count_noun(len(inputs.split.unseen), 'unseen interactions')} used,"
        f" at most {inputs.recipe.train.shots} per interaction, listed in {file}"
    )


def _evaluate_test(config: RunConfig, inputs: RunInputs, trainer: Trainer) -> Results | None:
    """Evaluates the last or the best checkpoint, as the recipe says, on the test part."""
    predictor, file = trainer.predictor, config.out / BEST
    if inputs.recipe.train.keep == "best":
        best = load_checkpoint(file)
        predictor = replace(predictor, model=build_model(best, file))
        logger.info(f"evaluating {BEST} of step {best.state['step']}")
    return evaluate_model(
        predictor,
        inputs.dataset,
        inputs.split,
        config.out,
        trainer.execution,
        skip_unreadable=config.skip_unreadable,
        limit=config.limit,
        name=config.run_name,
        metrics_log=config.out / METRICS,
        **describe_student(inputs.recipe, inputs.split, inputs.sources, inputs.limit),
    )


def _has_results(results: Path, checkpoint: Path, limit: int | None) -> bool:
    """Whether a finished run has its results.

    `eoid-train evaluate` writes into the run folder too: older results are of an earlier
    checkpoint, and limited ones of a run without that limit are no results of the run.
    """
    return is_up_to_date(results, checkpoint) and read_results(results).limit in (None, limit)
