"""Sizes and settings of phase two, one frozen dataclass per component."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar

from pipeline.utils.errors import InputError, bad_field
from student.models.backbone import RESNETS

BACKBONES = (*RESNETS, "toy")
QUERIES = ("learned", "proposals")
VERB_LOSSES = ("focal_bce", "bce_bce")
SOFT_NORMALISATIONS = ("entries", "pairs", "supervised")
VERB_HEADS = ("linear", "text")


@dataclass(frozen=True)
class ModelConfig:
    """The detector's sizes; the defaults are the published ones.

    Attributes:
        num_objects, num_verbs: sizes O and V of the vocabulary.
        person: object index of people (queries from proposals).
        num_queries: pairs Q that are predicted for an image.
        queries: where queries come from, one of `QUERIES`.
        pair_people: queries from proposals also pair people with people.
        backbone: one of `BACKBONES`.
        hidden_dim, num_heads, feedforward_dim: sizes of every transformer layer.
        num_encoder_layers, num_human_object_layers, num_interaction_layers: depths.
        dropout: share of zeroed activations inside the transformer while training.
        pre_norm: layer norm before each sublayer instead of after it.
        detach_verb_queries: keep verb gradients out of localisation (vdetach).
        matching_head: also predict whether a query holds a pair at all.
        verb_head: one of `VERB_HEADS`: a weight for each verb, or sentences about it, which a
            trained student can be given more of.
        text_dim, num_texts: sizes D and R of the sentences' embeddings; 0 for a linear head.
        text_model: identifies the CLIP that embedded them; "" for a linear head.
    """

    num_objects: int = 80
    num_verbs: int = 117
    person: int = 0
    num_queries: int = 64
    queries: str = "learned"
    pair_people: bool = False
    backbone: str = "resnet50"
    hidden_dim: int = 256
    num_heads: int = 8
    feedforward_dim: int = 2048
    num_encoder_layers: int = 6
    num_human_object_layers: int = 3
    num_interaction_layers: int = 3
    dropout: float = 0.1
    pre_norm: bool = False
    detach_verb_queries: bool = True
    matching_head: bool = False
    verb_head: str = "linear"
    text_dim: int = 0
    num_texts: int = 0
    text_model: str = ""

    def __post_init__(self) -> None:
        check_choice("queries", self.queries, QUERIES)
        check_choice("verb_head", self.verb_head, VERB_HEADS)
        for name in ("text_dim", "num_texts"):
            check_min(name, getattr(self, name), 1 if self.verb_head == "text" else 0)
        check_choice("backbone", self.backbone, BACKBONES)
        for name in (
            *("num_objects", "num_verbs", "num_queries", "hidden_dim", "num_heads"),
            *("feedforward_dim", "num_human_object_layers", "num_interaction_layers"),
        ):
            check_min(name, getattr(self, name), 1)
        check_range("person", self.person, 0, self.num_objects - 1)
        check_min("num_encoder_layers", self.num_encoder_layers, 0)
        check_range("dropout", self.dropout, 0, 1)
        if self.hidden_dim % self.num_heads or self.hidden_dim % 4:
            raise InputError(
                f"hidden_dim: expected a multiple of 4 and of num_heads ({self.num_heads}),"
                f" found {self.hidden_dim}"
            )

    @classmethod
    def published(cls, num_objects: int = 80, num_verbs: int = 117) -> ModelConfig:
        """The published ResNet-50 model."""
        return cls(num_objects=num_objects, num_verbs=num_verbs)

    @classmethod
    def toy(cls, num_objects: int, num_verbs: int, person: int) -> ModelConfig:
        """The small model of the toy dataset."""
        return cls(
            num_objects=num_objects,
            person=person,
            num_verbs=num_verbs,
            num_queries=20,
            queries="proposals",
            backbone="toy",
            hidden_dim=96,
            num_heads=4,
            feedforward_dim=256,
            num_encoder_layers=1,
            num_human_object_layers=2,
            num_interaction_layers=2,
            dropout=0.0,
        )


@dataclass(frozen=True)
class MatcherConfig:
    """Costs of the two-stage matching and the gate of its second stage.

    Attributes:
        object_cost, verb_cost, box_cost, giou_cost: factors of the four cost terms.
        iou_threshold: what both boxes of a pair must overlap to count as that pair.
        interactive_threshold: interactive probability a candidate's query must exceed (thres_is).
        topk: candidates kept per image, the most interactive ones.
    """

    object_cost: float = 1.0
    verb_cost: float = 1.0
    box_cost: float = 2.5
    giou_cost: float = 1.0
    iou_threshold: float = 0.5
    interactive_threshold: float = 0.5
    topk: int = 3

    def __post_init__(self) -> None:
        for name in ("object_cost", "verb_cost", "box_cost", "giou_cost", "topk"):
            check_min(name, getattr(self, name), 0)
        check_range("iou_threshold", self.iou_threshold, 0, 1)
        check_range("interactive_threshold", self.interactive_threshold, 0, 1)

    @classmethod
    def published(cls) -> MatcherConfig:
        """The published matching."""
        return cls()

    @classmethod
    def toy(cls) -> MatcherConfig:
        """An open gate: poses unlike every seen one would never pass the published one."""
        return cls(interactive_threshold=0.0)


@dataclass(frozen=True)
class LossConfig:
    """Weights and forms of the losses.

    Attributes:
        object_weight, box_weight, giou_weight, verb_hard_weight, verb_soft_weight,
            interactive_weight, matching_weight: factors in the total; boxes and GIoU count once
            for the human and once for the object.
        embedding_weight: of the distance between a matched query's embedding and the teacher's
            of the pair's region; for a verb head that reads.
        no_pair_weight: class weight of "no pair" in the object cross-entropy.
        alpha, gamma: focal loss of the hard verb targets.
        verb_loss: one of `VERB_LOSSES`, the form of the hard part (the soft part is BCE).
        soft_normalisation: one of `SOFT_NORMALISATIONS`: the soft sum is divided by all B*Q*V
            entries (published, weight 700), by the number of matched pairs, which does not
            depend on the sizes (a weight of about 0.35 equals the published one), or by the
            number of answers: matched pairs times verbs that the teacher is asked for, so that
            a split with many asked verbs does not drown the labels.
    """

    object_weight: float = 1.0
    box_weight: float = 2.5
    giou_weight: float = 1.0
    verb_hard_weight: float = 1.6
    verb_soft_weight: float = 700.0
    interactive_weight: float = 1.0
    matching_weight: float = 1.0
    embedding_weight: float = 0.0
    no_pair_weight: float = 0.1
    alpha: float = 0.5
    gamma: float = 2.0
    verb_loss: str = "focal_bce"
    soft_normalisation: str = "entries"

    def __post_init__(self) -> None:
        check_choice("verb_loss", self.verb_loss, VERB_LOSSES)
        check_choice("soft_normalisation", self.soft_normalisation, SOFT_NORMALISATIONS)
        for name, value in vars(self).items():
            if isinstance(value, (int, float)):
                check_min(name, value, 0)
        check_range("alpha", self.alpha, 0, 1)

    @classmethod
    def published(cls) -> LossConfig:
        """The published losses."""
        return cls()

    @classmethod
    def toy(cls) -> LossConfig:
        """The soft part at a strength that depends neither on sizes nor on the split."""
        return cls(verb_soft_weight=3.0, soft_normalisation="supervised")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """The value is one of the choices.

    Raises:
        InputError: it is none of them.
    """
    if value not in choices:
        raise InputError(f"{name}: expected one of {', '.join(choices)}, found {value}")


def check_min(name: str, value: float, minimum: float) -> None:
    """The value is a number that is not below the minimum.

    Raises:
        InputError: it is smaller, or not a number.
    """
    if not value >= minimum:
        raise InputError(f"{name}: expected at least {minimum}, found {value}")


def check_range(name: str, value: float, low: float, high: float) -> None:
    """The value is a number from low to high, both included.

    Raises:
        InputError: it lies outside, or is not a number.
    """
    if not low <= value <= high:
        raise InputError(f"{name}: expected a number from {low} to {high}, found {value}")


def check_half_open(name: str, value: float, low: float, end: float) -> None:
    """The value is a number from low up to, but not reaching, the end.

    Raises:
        InputError: it lies outside, or is not a number.
    """
    if not low <= value < end:
        raise InputError(f"{name}: expected a number from {low} to below {end}, found {value}")


@dataclass(frozen=True)
class TargetConfig:
    """Which pairs teach, and how.

    Attributes:
        candidates: "detector" for the frozen detector's proposals, "annotated" for pairs of
            annotated boxes (the published, transductive protocol): all of them where the cache
            holds these, else the labelled pairs whose labels are all unseen.
        distillation: False silences the teacher and changes nothing else.
        duplicate_iou: a candidate goes when both its boxes overlap a seen pair of the same object
            by this IoU.
        box_score_threshold: least score of the detector's boxes that the proposal head learns from.
    """

    candidates: str = "detector"
    distillation: bool = True
    duplicate_iou: float = 0.5
    box_score_threshold: float = 0.3


PRESETS = ("published", "toy")
SCHEDULES = ("step", "one_cycle")
PRECISIONS = ("auto", "float32", "tf32", "bfloat16")
KEEP_CHOICES = ("last", "best")

Config = TypeVar("Config")


@dataclass(frozen=True)
class TrainConfig:
    """The optimisation; the defaults are the published ones.

    Attributes:
        epochs, batch_size: length and size of the steps (images).
        learning_rate: peak rate of everything but the backbone.
        backbone_lr_factor: the backbone's rate as a share of it.
        weight_decay: AdamW's.
        schedule: "step" (a linear rise over `warmup_steps`, then constant, a tenth from epoch
            `drop_epoch` on) or "one_cycle".
        drop_epoch, warmup_steps: see `schedule`.
        clip_norm: largest gradient norm; 0 clips nothing.
        last_batch: see `student.data.samplers.Order`.
        ema: decay of the averaged weights that predict; 0 predicts with the plain weights.
        augmentation: "published" (DETR's, short side 480..800) or "toy" (flip and colours, no
            resize); evaluation resizes to match.
        precision: "auto" is bfloat16 where the hardware is quick at it.
        seed: of weights, order and augmentation.
        proposal_class_weight, proposal_box_weight: losses of the proposal head (queries from
            proposals).
        val_size: training images left out to evaluate on: a share below 1, or their number.
        val_every: epochs between evaluations on these; 0 evaluates after the last one only.
        keep: the weights that the run ends with, "last" or "best" on the held-out images.
        shots: labelled pairs of every unseen interaction that training sees all the same.
        shot_seed: chooses these; None takes `seed`.
        extra_ratio: share of a step's images that come from further sources, where there are some;
            None for their share of all images.
    """

    epochs: int = 90
    batch_size: int = 16
    learning_rate: float = 1e-4
    backbone_lr_factor: float = 0.1
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
    proposal_class_weight: float = 1.0
    proposal_box_weight: float = 1.0
    val_size: float = 0.0
    val_every: int = 0
    keep: str = "last"
    shots: int = 0
    shot_seed: int | None = None
    extra_ratio: float | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            check_min(name, getattr(self, name), 1)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("augmentation", self.augmentation, PRESETS)
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("last_batch", self.last_batch, LAST_BATCHES)
        check_choice("keep", self.keep, KEEP_CHOICES)
        check_half_open("ema", self.ema, 0, 1)
        for name in (
            *("learning_rate", "backbone_lr_factor", "weight_decay", "clip_norm", "drop_epoch"),
            *("warmup_steps", "val_size", "val_every", "shots"),
        ):
            check_min(name, getattr(self, name), 0)
        if self.schedule != "step" and self.warmup_steps:
            raise InputError(f"warmup_steps: expected 0, as {self.schedule} has a rise of its own")
        if not self.val_size and (self.val_every or self.keep == "best"):
            wish = "val_every" if self.val_every else "keep"
            raise InputError(f"{wish}: expected a val_size above 0 beside it, found 0")
        if self.shot_seed is not None and not self.shots:
            raise InputError("shot_seed: expected shots above 0 beside it, found 0")


@dataclass(frozen=True)
class Recipe:
    """All settings of a student: its sizes, matching, losses, targets and optimisation."""

    model: ModelConfig
    matcher: MatcherConfig = field(default_factory=MatcherConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    targets: TargetConfig = field(default_factory=TargetConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dicts, for files."""
        return asdict(self)

    def override(self, **options: Any) -> Recipe:
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
        "model": ModelConfig,
        "matcher": MatcherConfig,
        "losses": LossConfig,
        "targets": TargetConfig,
        "train": TrainConfig,
    }
    if not isinstance(value, dict) or set(value) != set(kinds):
        raise bad_field(file, "recipe", f"parts {', '.join(kinds)}", value)
    parts = {}
    for name, kind in kinds.items():
        try:
            parts[name] = kind(**value[name])
        except TypeError as error:
            raise bad_field(
                file, f"recipe.{name}", f"fields of {kind.__name__}", str(error)
            ) from None
    return Recipe(**parts)


def get_preset(
    name: str, num_objects: int, num_verbs: int, person: int, pair_people: bool = False
) -> Recipe:
    """The published recipe, or the small one of the toy dataset.

    Args:
        name: one of `PRESETS`.
        num_objects, num_verbs, person: of the vocabulary.
        pair_people: people are objects of the vocabulary's interactions too.

    Raises:
        InputError: no such preset.
    """
    if name == "published":
        model = ModelConfig(num_objects=num_objects, num_verbs=num_verbs, person=person)
        return Recipe(replace(model, pair_people=pair_people))
    if name != "toy":
        raise InputError(f"--preset: expected one of {', '.join(PRESETS)}, found {name}")
    return Recipe(
        model=replace(ModelConfig.toy(num_objects, num_verbs, person), pair_people=pair_people),
        matcher=MatcherConfig.toy(),
        losses=LossConfig.toy(),
        train=TrainConfig(
            epochs=3,
            batch_size=32,
            learning_rate=2e-3,
            backbone_lr_factor=0.6,
            weight_decay=0.02,
            schedule="one_cycle",
            clip_norm=1.0,
            ema=0.99,
            augmentation="toy",
        ),
    )


LAST_BATCHES = ("drop", "fill")
