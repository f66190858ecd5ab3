"""How the student is trained: one frozen value, written into the run folder and checkpoints."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar

from pipeline.errors import InputError, bad_field
from student.checks import at_least, below, one_of
from student.config import LossConfig, MatcherConfig, StudentConfig
from student.pair_targets import TargetConfig
from student.sampling import LAST_BATCHES

PRESETS = ("published", "world")
SCHEDULES = ("step", "one_cycle")
PRECISIONS = ("auto", "float32", "tf32", "bfloat16")
KEPT = ("last", "best")
# Fields of older checkpoints, with the value that means what is done today.
GONE = {"targets": {"calibrated": False}}

Config = TypeVar("Config")


@dataclass(frozen=True)
class TrainConfig:
    """The optimisation; the defaults are the published ones.

    Attributes:
        epochs, batch_size: length and size of the steps (images).
        learning_rate: peak rate of everything but the backbone.
        backbone_factor: the backbone's rate as a share of it.
        weight_decay: AdamW's.
        schedule: "step" (a linear rise over `warmup_steps`, then constant, a tenth from epoch
            `drop_epoch` on) or "one_cycle".
        drop_epoch, warmup_steps: see `schedule`.
        clip_norm: largest gradient norm; 0 clips nothing.
        last_batch: see `student.sampling.Order`.
        ema: decay of the averaged weights that predict; 0 predicts with the plain weights.
        augmentation: "published" (DETR's, short side 480..800) or "world" (flip and colours, no
            resize); evaluation resizes to match.
        precision: "auto" is bfloat16 where the hardware is quick at it.
        seed: of weights, order and augmentation.
        dense_class_weight, dense_box_weight: losses of the dense head (queries from pairs).
        hold_out: training images left out to evaluate on: a share below 1, or their number.
        evaluate_every: epochs between evaluations on these; 0 evaluates after the last one only.
        keep: the weights that the run ends with, "last" or "best" on the held-out images.
        shots: labelled pairs of every unseen interaction that training sees all the same.
        shot_seed: chooses these; None takes `seed`.
        mix: share of a step's images that come from further sources, where there are some; None
            for their share of all images.
    """

    epochs: int = 90
    batch_size: int = 16
    learning_rate: float = 1e-4
    backbone_factor: float = 0.1
    weight_decay: float = 1e-4
    schedule: str = "step"
    drop_epoch: int = 60
    warmup_steps: int = 0
    clip_norm: float = 0.1
    last_batch: str = "drop"
    ema: float = 0.0
    augmentation: str = "published"
    precision: str = "auto"
    seed: int = 0
    dense_class_weight: float = 1.0
    dense_box_weight: float = 1.0
    hold_out: float = 0.0
    evaluate_every: int = 0
    keep: str = "last"
    shots: int = 0
    shot_seed: int | None = None
    mix: float | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            at_least(name, getattr(self, name), 1)
        one_of("schedule", self.schedule, SCHEDULES)
        one_of("augmentation", self.augmentation, PRESETS)
        one_of("precision", self.precision, PRECISIONS)
        one_of("last_batch", self.last_batch, LAST_BATCHES)
        one_of("keep", self.keep, KEPT)
        below("ema", self.ema, 0, 1)
        for name in (
            *("learning_rate", "backbone_factor", "weight_decay", "clip_norm", "drop_epoch"),
            *("warmup_steps", "hold_out", "evaluate_every", "shots"),
        ):
            at_least(name, getattr(self, name), 0)
        if self.schedule != "step" and self.warmup_steps:
            raise InputError(f"warmup_steps: expected 0, as {self.schedule} has a rise of its own")
        if not self.hold_out and (self.evaluate_every or self.keep == "best"):
            wish = "evaluate_every" if self.evaluate_every else "keep"
            raise InputError(f"{wish}: expected a hold_out above 0 beside it, found 0")
        if self.shot_seed is not None and not self.shots:
            raise InputError("shot_seed: expected shots above 0 beside it, found 0")


@dataclass(frozen=True)
class Recipe:
    """All settings of a student: its sizes, matching, losses, targets and optimisation."""

    model: StudentConfig
    matcher: MatcherConfig = field(default_factory=MatcherConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    targets: TargetConfig = field(default_factory=TargetConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dicts, for files."""
        return asdict(self)

    def changed(self, **options: Any) -> Recipe:
        """A recipe in which the named fields of its parts have other values.

        Args:
            options: field name to value; None leaves the field as it is.
        """
        parts = {}
        left = {name: value for name, value in options.items() if value is not None}
        for part in fields(self):
            value = getattr(self, part.name)
            own = {f.name for f in fields(value)} & left.keys()
            parts[part.name] = replace(value, **{name: left.pop(name) for name in own})
        assert not left, f"no such field: {sorted(left)}"
        return Recipe(**parts)


def recipe_from_dict(value: dict[str, Any], file: object) -> Recipe:
    """Reads what `Recipe.to_dict` wrote.

    Raises:
        InputError: unknown or missing parts.
    """
    kinds = {
        "model": StudentConfig,
        "matcher": MatcherConfig,
        "losses": LossConfig,
        "targets": TargetConfig,
        "train": TrainConfig,
    }
    if not isinstance(value, dict) or set(value) != set(kinds):
        raise bad_field(file, "recipe", f"parts {', '.join(kinds)}", value)
    parts = {}
    for name, kind in kinds.items():
        gone = GONE.get(name, {}).items()
        try:
            held = {**value[name]}.items()
            parts[name] = kind(**dict(entry for entry in held if entry not in gone))
        except TypeError as error:
            raise bad_field(
                file, f"recipe.{name}", f"fields of {kind.__name__}", str(error)
            ) from None
    return Recipe(**parts)


def preset(
    name: str, num_objects: int, num_verbs: int, person: int, pair_people: bool = False
) -> Recipe:
    """The published recipe, or the small one of the embedded world.

    Args:
        name: one of `PRESETS`.
        num_objects, num_verbs, person: of the vocabulary.
        pair_people: people are objects of the vocabulary's interactions too.

    Raises:
        InputError: no such preset.
    """
    if name == "published":
        model = StudentConfig(num_objects=num_objects, num_verbs=num_verbs, person=person)
        return Recipe(replace(model, pair_people=pair_people))
    if name != "world":
        raise InputError(f"--preset: expected one of {', '.join(PRESETS)}, found {name}")
    return Recipe(
        model=replace(StudentConfig.world(num_objects, num_verbs, person), pair_people=pair_people),
        matcher=MatcherConfig.world(),
        losses=LossConfig.world(),
        train=TrainConfig(
            epochs=3,
            batch_size=32,
            learning_rate=2e-3,
            backbone_factor=0.6,
            weight_decay=0.02,
            schedule="one_cycle",
            clip_norm=1.0,
            ema=0.99,
            augmentation="world",
        ),
    )
