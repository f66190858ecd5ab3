"""All settings of phase two, one frozen dataclass per component.

The defaults are the published ones. A field made with `setting` can be set on the command line,
with `--set` and in a configuration file; `eoid-train config` lists them with these texts.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, get_type_hints

from pipeline.utils.config_fields import check_settings, check_share, setting
from pipeline.utils.errors import InputError, bad_field

# A copy of the names in `student.models.backbone`, which imports torch, so that `--help` need not.
BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "toy")
TIMM_BACKBONE = "timm:NAME"
LAST_BATCHES = ("drop", "fill")
PRECISIONS = ("auto", "float32", "tf32", "bfloat16")
DISTILLATION = "Distillation"
# Preset of the small student: fields that differ from the published recipe.
TOY_FIELDS: dict[str, Any] = {
    "num_queries": 20,
    "queries": "proposals",
    "backbone": "toy",
    "hidden_dim": 96,
    "num_heads": 4,
    "feedforward_dim": 256,
    "num_encoder_layers": 1,
    "num_human_object_layers": 2,
    "num_interaction_layers": 2,
    "dropout": 0.0,
    # Queries on the toy dataset's unseen actions would not pass the published gate.
    "interactive_threshold": 0.0,
    # A distillation loss whose strength depends neither on sizes nor on the split.
    "verb_soft_weight": 3.0,
    "soft_normalisation": "supervised",
    "epochs": 6,
    "batch_size": 8,
    "learning_rate": 2e-3,
    "backbone_lr_factor": 0.0,
    "weight_decay": 0.02,
    "schedule": "one_cycle",
    "clip_norm": 1.0,
    "ema": 0.99,
    "augmentation": "toy",
}
# Fields of each preset that differ from the published recipe.
PRESETS: dict[str, dict[str, Any]] = {
    "published": {},
    "proposals": {"queries": "proposals"},
    "toy": TOY_FIELDS,
}
AUGMENTATIONS = ("published", "toy")


class CheckedSettings:
    """Base class of the parts of a recipe, which checks their fields."""

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class ModelConfig(CheckedSettings):
    """The detector's architecture and sizes.

    Fields that follow from the data, and so are no settings:

    Attributes:
        num_objects, num_verbs: numbers O and V of the vocabulary's classes.
        person: index of the object class person.
        pair_people: with queries from proposals, people are objects of pairs too.
        text_dim, num_texts, text_model: size D and number R of the text embeddings, and their CLIP
            model; 0 and empty for linear heads.
    """

    num_objects: int = 80
    num_verbs: int = 117
    person: int = 0
    pair_people: bool = False
    text_dim: int = 0
    num_texts: int = 0
    text_model: str = ""
    num_queries: int = setting(
        64, "Number of queries Q, that is of predicted pairs per image.", low=1
    )
    queries: str = setting(
        "learned",
        "Decoder queries: learned embeddings, or built from the pairs that a proposal head finds.",
        choices=("learned", "proposals"),
    )
    backbone: str = setting(
        "resnet50",
        "Backbone architecture; timm:NAME is a model of timm, such as"
        " timm:vit_small_patch14_dinov2.lvd142m, and --backbone-weights loads its weights.",
        choices=(*BACKBONES, TIMM_BACKBONE),
    )
    feature_levels: int = setting(
        1,
        "Number of the backbone's last feature maps whose projections are summed for the encoder.",
        low=1,
        high=3,
    )
    hidden_dim: int = setting(
        256, "Width of the transformer, a multiple of 4 and of num-heads.", low=1
    )
    num_heads: int = setting(8, "Number of attention heads of every transformer layer.", low=1)
    feedforward_dim: int = setting(
        2048, "Width of the feed-forward network of every transformer layer.", low=1
    )
    num_encoder_layers: int = setting(6, "Number of encoder layers.", low=0)
    num_human_object_layers: int = setting(
        3, "Number of decoder layers for human and object boxes.", low=1
    )
    num_interaction_layers: int = setting(3, "Number of decoder layers for verbs.", low=1)
    dropout: float = setting(0.1, "Dropout rate of every transformer layer.", low=0, high=1)
    pre_norm: bool = setting(
        False, "Apply layer normalisation before each sublayer instead of after it."
    )
    detach_verb_queries: bool = setting(
        True,
        "Detach verb queries, so that verb gradients do not reach localisation.",
        option="vdetach",
    )
    matching_head: bool = setting(
        False, "Also predict whether a query is matched to a pair at all."
    )
    verb_head: str = setting(
        "linear",
        "Verb classifier: a linear layer, or similarity with CLIP text embeddings, to which actions"
        " can be added after training.",
        choices=("linear", "text"),
    )
    object_head: str = setting(
        "linear",
        "Object classifier: a linear layer, or similarity with CLIP text embeddings, to which"
        " objects can be added after training.",
        choices=("linear", "text"),
    )

    @property
    def has_text_head(self) -> bool:
        return "text" in (self.verb_head, self.object_head)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.person < self.num_objects:
            expected = f"a number from 0 to {self.num_objects - 1}"
            raise InputError(f"person: expected {expected}, found {self.person}")
        for name in ("text_dim", "num_texts") if self.has_text_head else ():
            if not getattr(self, name):
                raise InputError(f"{name}: expected at least 1, found 0")
        if self.hidden_dim % self.num_heads or self.hidden_dim % 4:
            raise InputError(
                f"hidden_dim: expected a multiple of 4 and of num_heads ({self.num_heads}),"
                f" found {self.hidden_dim}"
            )


@dataclass(frozen=True)
class MatcherConfig(CheckedSettings):
    """Costs of the two-stage bipartite matching, and the gate of its second stage."""

    object_cost: float = setting(1.0, "Weight of the object class in the matching cost.", low=0)
    verb_cost: float = setting(1.0, "Weight of the verbs in the matching cost.", low=0)
    box_cost: float = setting(
        2.5, "Weight of the L1 distance of boxes in the matching cost.", low=0
    )
    giou_cost: float = setting(
        1.0, "Weight of the generalised IoU of boxes in the matching cost.", low=0
    )
    iou_threshold: float = setting(
        0.5,
        "Minimum IoU of both boxes of a query and a candidate for the two to be matched.",
        low=0,
        high=1,
        group=DISTILLATION,
    )
    interactive_threshold: float = setting(
        0.5,
        "Minimum interactive probability of a query to be matched to a candidate.",
        low=0,
        high=1,
        group=DISTILLATION,
    )
    interactive_warmup: int = setting(
        0,
        "Number of epochs in which the minimum interactive probability rises from 0.",
        low=0,
        group=DISTILLATION,
    )
    topk: int = setting(
        3,
        "Number of candidates per image that may be matched to the teacher's outputs.",
        low=0,
        group=DISTILLATION,
    )


@dataclass(frozen=True)
class LossConfig(CheckedSettings):
    """Weights and forms of the losses.

    The published distillation loss is divided by all B*Q*V entries and has a weight of 700; at the
    published sizes this equals a weight of about 0.35 with division by matched pairs. Division by
    matched pairs times supervised verbs makes its strength independent of the sizes and of the
    number of distilled verbs.
    """

    object_weight: float = setting(1.0, "Weight of the object classification loss.", low=0)
    box_weight: float = setting(
        2.5, "Weight of the L1 loss of human boxes, and of object boxes.", low=0
    )
    giou_weight: float = setting(
        1.0, "Weight of the generalised-IoU loss of human boxes, and of object boxes.", low=0
    )
    verb_hard_weight: float = setting(1.6, "Weight of the loss on verb labels.", low=0)
    verb_soft_weight: float = setting(
        700.0,
        "Weight of the distillation loss.",
        low=0,
        group=DISTILLATION,
        option="soft-weight",
    )
    interactive_weight: float = setting(
        1.0, "Weight of the loss on the interactive probability.", low=0
    )
    matching_weight: float = setting(1.0, "With a matching head: weight of its loss.", low=0)
    embedding_weight: float = setting(
        0.0,
        "With a text head: weight of the distance between a matched query's embedding and the"
        " teacher's embedding of the region.",
        low=0,
        group=DISTILLATION,
        default_text="1 with --verb-head or --object-head text, otherwise 0",
    )
    no_pair_weight: float = setting(
        0.1, 'Class weight of "no pair" in the object classification loss.', low=0
    )
    alpha: float = setting(0.5, "Alpha of the focal loss on verb labels.", low=0, high=1)
    gamma: float = setting(2.0, "Gamma of the focal loss on verb labels.", low=0)
    verb_loss: str = setting(
        "focal_bce",
        "Loss on verb labels: focal loss or binary cross-entropy. Distillation always uses binary"
        " cross-entropy.",
        choices=("focal_bce", "bce_bce"),
    )
    soft_normalisation: str = setting(
        "entries",
        "Denominator of the distillation loss: all entries (batch x queries x verbs), matched"
        " pairs, or matched pairs times supervised verbs.",
        choices=("entries", "pairs", "supervised"),
        group=DISTILLATION,
    )


@dataclass(frozen=True)
class TargetConfig(CheckedSettings):
    """Candidates of the distillation, and targets of the proposal head.

    Candidates of "detector" are the frozen detector's proposals. Those of "annotated" are pairs of
    annotated boxes (the published, transductive protocol): all of them where the cache holds these,
    otherwise the labelled pairs whose labels are all unseen.
    """

    candidates: str = setting(
        "detector",
        "Source of unlabelled pairs: the detector's proposals or annotated boxes.",
        choices=("detector", "annotated"),
        default_text="as the cache was built",
    )
    distillation: bool = setting(
        True, "Train with the teacher's outputs; without them a run is the control experiment."
    )
    duplicate_iou: float = setting(
        0.5,
        "A candidate is dropped where both its boxes overlap a labelled pair of the same object by"
        " this IoU.",
        low=0,
        high=1,
    )
    box_score_threshold: float = setting(
        0.3,
        "Minimum score of the detector's boxes that are targets of the proposal head, besides the"
        " labelled boxes.",
        low=0,
        high=1,
    )


@dataclass(frozen=True)
class ProbeConfig(CheckedSettings):
    """The verb head on a cache's region embeddings and its training (`eoid-train probe`)."""

    distillation: bool = setting(
        True,
        "Train with the teacher's probabilities; without them a probe is the control experiment.",
    )
    hidden_dim: int = setting(512, "Width of the hidden layer; 0 for a linear head.", low=0)
    epochs: int = setting(10, "Number of training epochs.", low=1)
    batch_size: int = setting(256, "Number of pairs per step.", low=1)
    learning_rate: float = setting(
        1e-3, "Peak learning rate, which falls to 0.", low=0, low_open=True
    )
    weight_decay: float = setting(0.01, "Weight decay of AdamW.", low=0)
    seed: int = setting(0, "Seed of weights and data order.", low=0)


@dataclass(frozen=True)
class TrainConfig(CheckedSettings):
    """Data selection, optimisation and validation of a training."""

    epochs: int = setting(90, "Number of training epochs.", low=1)
    batch_size: int = setting(16, "Batch size over all processes.", low=1)
    learning_rate: float = setting(
        1e-4,
        "Peak learning rate of all parameters but the backbone's.",
        low=0,
        low_open=True,
    )
    backbone_lr_factor: float = setting(
        0.1, "Learning rate of the backbone as a multiple of learning-rate; 0 freezes it.", low=0
    )
    heads_only: bool = setting(
        False,
        "Train only the heads, which contain all rows of classes; backbone, encoder, decoders and"
        " queries keep the pretrained weights.",
    )
    weight_decay: float = setting(1e-4, "Weight decay of AdamW.", low=0)
    schedule: str = setting(
        "step",
        "Learning-rate schedule: constant and divided by ten once, or one-cycle.",
        choices=("step", "one_cycle"),
    )
    drop_epoch: int = setting(
        60, "With schedule step: epoch at which the learning rate is divided by ten.", low=0
    )
    warmup_steps: int = setting(0, "With schedule step: number of linear warm-up steps.", low=0)
    clip_norm: float = setting(0.1, "Maximum gradient norm; 0 disables clipping.", low=0)
    last_batch: str = setting(
        "drop",
        "Images of an epoch that do not fill a batch: drop them, or fill up with the epoch's"
        " first.",
        choices=LAST_BATCHES,
    )
    ema: float = setting(
        0.0,
        "Decay of the exponential moving average of the weights, which then predicts; 0 disables"
        " it.",
        low=0,
        high=1,
        high_open=True,
    )
    augmentation: str = setting(
        "published",
        "Training augmentation: DETR's (flip, colour jitter, resize to a short side of 480 to 800,"
        " crop), or flip and colour jitter, with only sides above 1333 shrunk. Evaluation resizes"
        " accordingly.",
        choices=AUGMENTATIONS,
    )
    precision: str = setting(
        "auto",
        "Arithmetic of training; auto takes bfloat16 where the hardware is fast at it.",
        choices=PRECISIONS,
        group="Runtime",
    )
    seed: int = setting(0, "Seed of weights, data order and augmentation.", low=0)
    proposal_class_weight: float = setting(
        1.0, "With queries from proposals: weight of the proposal head's class loss.", low=0
    )
    proposal_box_weight: float = setting(
        1.0, "With queries from proposals: weight of the proposal head's box loss.", low=0
    )
    val_size: float = setting(
        0.0,
        "Training images held out for validation: a fraction below 1, or their number.",
        low=0,
        group="Validation",
    )
    val_every: int = setting(
        0,
        "Number of epochs between validations; 0 validates after the last epoch only.",
        low=0,
        group="Validation",
    )
    keep: str = setting(
        "last",
        "Weights to end with: the last ones, or the best on validation images.",
        choices=("last", "best"),
        group="Validation",
    )
    patience: int = setting(
        0,
        "With keep best: number of validations without a better score after which the training"
        " ends early; 0 never does.",
        low=0,
        group="Validation",
    )
    shots: int = setting(
        0,
        "Few-shot setting: number of labelled pairs kept per unseen interaction.",
        low=0,
        group="Data",
    )
    shot_seed: int | None = setting(
        None, "Seed of the few-shot selection.", low=0, group="Data", default_text="that of --seed"
    )
    extra_ratio: float | None = setting(
        None,
        "Fraction of every batch taken from --extra-data.",
        low=0,
        high=1,
        low_open=True,
        high_open=True,
        group="Data",
        default_text="its share of all images",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule != "step" and self.warmup_steps:
            raise InputError(
                f"warmup_steps: expected 0, because {self.schedule} has its own warm-up, found"
                f" {self.warmup_steps}"
            )
        check_share("val_size", self.val_size)
        if not self.val_size and (self.val_every or self.keep == "best"):
            name = "val_every" if self.val_every else "keep"
            raise InputError(f"{name}: expected a val_size above 0 as well, found 0")
        if self.patience:
            needed = {
                "val_size": (self.val_size, "above 0"),
                "val_every": (self.val_every, "above 0"),
                "keep": (self.keep == "best", "best"),
            }
            for name, (is_set, expected) in needed.items():
                if not is_set:
                    raise InputError(
                        f"patience: expected {name} {expected} as well, found {getattr(self, name)}"
                    )
        if self.shot_seed is not None and not self.shots:
            raise InputError("shot_seed: expected shots above 0 as well, found 0")


@dataclass(frozen=True)
class Recipe:
    """All settings of a student: model, matching, losses, targets and optimisation."""

    model: ModelConfig
    matcher: MatcherConfig = field(default_factory=MatcherConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    targets: TargetConfig = field(default_factory=TargetConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dicts, for files."""
        return asdict(self)

    def override(self, **options: Any) -> Recipe:
        """A copy with other values of the named fields, whichever part they belong to.

        Args:
            options: values by field name; None leaves the field unchanged.
        """
        parts = {}
        unused = {name: value for name, value in options.items() if value is not None}
        for part in fields(self):
            config = getattr(self, part.name)
            names = {entry.name for entry in fields(config)} & unused.keys()
            parts[part.name] = replace(config, **{name: unused.pop(name) for name in names})
        assert not unused, f"no such field: {sorted(unused)}"
        return Recipe(**parts)


RECIPE_PARTS: dict[str, type] = get_type_hints(Recipe)


def recipe_from_dict(value: dict[str, Any], file: object) -> Recipe:
    """The inverse of `Recipe.to_dict`.

    Args:
        value: the dicts.
        file: the file that they were read from, for error messages.

    Raises:
        InputError: a part or a field is unknown or missing, or a value is out of range.
    """
    if not isinstance(value, dict) or set(value) != set(RECIPE_PARTS):
        raise bad_field(file, "recipe", f"parts {', '.join(RECIPE_PARTS)}", value)
    parts = {}
    for name, kind in RECIPE_PARTS.items():
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
    """The recipe of a preset.

    Args:
        name: one of `PRESETS`.
        num_objects, num_verbs, person: of the vocabulary.
        pair_people: people are objects of the vocabulary's interactions too.

    Raises:
        InputError: no such preset.
    """
    if name not in PRESETS:
        raise InputError(f"--preset: expected one of {', '.join(PRESETS)}, found {name}")
    recipe = Recipe(
        ModelConfig(
            num_objects=num_objects, num_verbs=num_verbs, person=person, pair_people=pair_people
        )
    )
    return recipe.override(**PRESETS[name])
