"""What a build is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from teacher_cache.answering import AskingConfig
from teacher_cache.cluster.modes import Mode
from teacher_cache.cluster.share import Share
from teacher_cache.prompts import TEMPLATE


@dataclass(frozen=True)
class BuildConfig:
    """Everything that a build is told.

    Attributes:
        dataset: the dataset folder.
        out: the cache folder, new or of an interrupted build of the same settings.
        part: "train" or "test".
        candidates: "detector" pairs what a detector finds, "annotated" whatever people annotated
            (the published protocol).
        proposals: a file of detections, in the place of a detector.
        detector, detector_weights: name and weights; None takes the dataset's own detector, or
            torchvision's usual one.
        detector_classes: see `DetectorConfig.classes`.
        clip_model, clip_weights: see `ClipConfig`; None takes the dataset's own teacher, or the
            published one.
        precision: of CLIP's image tower, see `ClipConfig`.
        templates: sentences to ask with.
        asking: pairs, regions and batch sizes.
        images_per_shard: images of one shard and task.
        mode: where shards are made; None takes one process for each GPU if there are several, and
            otherwise this one.
        share: of a job that builds beside others; None builds everything.
        threads: of torch in every process, on a CPU; None takes what suits the mode.
        device: where the models run.
    """

    dataset: Path
    out: Path
    part: str = "train"
    candidates: str = "detector"
    proposals: Path | None = None
    detector: str | None = None
    detector_weights: str | None = None
    detector_classes: tuple[str, ...] | None = None
    clip_model: str | None = None
    clip_weights: str | None = None
    precision: str = "auto"
    templates: tuple[str, ...] = (TEMPLATE,)
    asking: AskingConfig = field(default_factory=AskingConfig)
    images_per_shard: int = 256
    mode: Mode | None = None
    share: Share | None = None
    threads: int | None = None
    device: str = "auto"
