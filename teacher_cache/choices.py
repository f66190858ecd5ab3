"""Which models a build uses, and where they run: what the user said, else what the dataset says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from pipeline.datasets import Dataset
from pipeline.errors import InputError
from teacher_cache.build_config import BuildConfig
from teacher_cache.clip_teacher import ClipConfig, resolve_precision
from teacher_cache.cluster.modes import (
    InProcess,
    LocalWorkers,
    Mode,
    is_elsewhere,
    threads_per_worker,
)
from teacher_cache.cluster.run import device_elsewhere
from teacher_cache.detectors import DEFAULT, DetectorConfig, recognise
from teacher_cache.proposal_index import ProposalsConfig
from teacher_cache.sources import Opened, Sources

CLIP_MODEL, CLIP_WEIGHTS = "RN50x16", "openai"


def choose_mode(config: BuildConfig) -> Mode:
    """Where shards are made: as told, or on all GPUs where there are several."""
    if config.mode is not None:
        return config.mode
    gpus = torch.cuda.device_count() if config.device == "auto" else 0
    return LocalWorkers(gpus) if gpus > 1 else InProcess()


def choose_sources(
    dataset: Dataset, config: BuildConfig, mode: Mode, say: Callable[[str], None]
) -> Sources:
    """What the answers will come from.

    Args:
        dataset: to ask about.
        config: what the user said.
        mode: where shards are made.
        say: told what is waited for.

    Raises:
        InputError: options that contradict each other, or files that are not there.
    """
    clip, device = _clip(dataset, config), config.device
    if is_elsewhere(mode):
        device = device_elsewhere(mode, device, say)
        clip = replace(clip, precision=resolve_precision(clip.precision, device))
    proposals = None
    if config.proposals is not None:
        proposals = ProposalsConfig(config.proposals, config.out)
    return Sources(
        dataset=config.dataset,
        part=config.part,
        detector=choose_detector(dataset, config) if _detects(config) else None,
        clip=clip,
        templates=config.templates,
        asking=config.asking,
        device=device,
        threads=config.threads or threads_per_worker(mode),
        proposals=proposals,
    )


def resolved(config: BuildConfig, sources: Sources, opened: Opened) -> BuildConfig:
    """The configuration with its models named, whatever the defaults are later or elsewhere."""
    config = replace(
        config,
        clip_model=sources.clip.model,
        clip_weights=sources.clip.weights,
        precision=opened.models.clip.precision,
        threads=sources.threads,
    )
    detector = sources.detector
    if detector is None:
        return config
    return replace(config, detector=detector.name, detector_weights=detector.weights)


def _detects(config: BuildConfig) -> bool:
    """Whether a detector is wanted; it is not where boxes are known beforehand.

    Raises:
        InputError: options that contradict each other.
    """
    instead = None
    if config.candidates == "annotated":
        instead = "--candidates annotated"
    elif config.proposals is not None:
        instead = "--proposals"
    options: dict[str, object] = {
        "--detector": config.detector,
        "--detector-weights": config.detector_weights,
        "--detector-classes": config.detector_classes and f"{len(config.detector_classes)} names",
    }
    if config.candidates == "annotated":
        options["--proposals"] = config.proposals
    for option, value in options.items():
        if instead is not None and value is not None:
            raise InputError(f"{option}: expected none with {instead}, found {value}")
    return instead is None


def choose_detector(dataset: Dataset, config: BuildConfig) -> DetectorConfig:
    """The detector that is asked for, else the dataset's own, else torchvision's usual one.

    Raises:
        InputError: the dataset names a weights file that is not there, or none.
    """
    name, weights, own = config.detector, config.detector_weights, dataset.detector
    if weights is None and own is not None:
        if not own.is_file():
            raise InputError(f"{own}: no such weights file, named by {dataset.root}")
        # Another detector than the dataset's takes its own weights.
        if name in (None, recognise(own, dataset.vocabulary)):
            weights = str(own)
    if name is None and weights is not None and Path(weights).is_file():
        name = recognise(Path(weights), dataset.vocabulary)
    pairing = config.asking.pairing
    # Detectors keep what is above their threshold; pairs take what is at it, too.
    lowest = min(pairing.person_threshold, pairing.object_threshold) - 1e-6
    return DetectorConfig(name or DEFAULT, weights, lowest, config.detector_classes)


def _clip(dataset: Dataset, config: BuildConfig) -> ClipConfig:
    if config.clip_model is not None:
        return ClipConfig(config.clip_model, config.clip_weights, config.precision)
    if dataset.teacher is None:
        return ClipConfig(CLIP_MODEL, config.clip_weights or CLIP_WEIGHTS, config.precision)
    if not dataset.teacher.is_dir():
        raise InputError(f"{dataset.teacher}: no such CLIP folder, named by {dataset.root}")
    return ClipConfig(str(dataset.teacher), config.clip_weights, config.precision)
