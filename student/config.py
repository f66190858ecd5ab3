"""Sizes and settings of phase two, one frozen dataclass per component."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import InputError
from student.checks import at_least, between, one_of
from student.resnets import RESNETS

BACKBONES = (*RESNETS, "world")
QUERIES = ("learned", "pairs")
VERB_LOSSES = ("focal_bce", "bce_bce")
SOFT_NORMALISATIONS = ("entries", "pairs", "answers")
VERB_HEADS = ("linear", "text")


@dataclass(frozen=True)
class StudentConfig:
    """The detector's sizes; the defaults are the published ones.

    Attributes:
        num_objects, num_verbs: sizes O and V of the vocabulary.
        person: object index of people (queries from pairs).
        num_queries: pairs Q that are predicted for an image.
        queries: where queries come from, one of `QUERIES`.
        pair_people: queries from pairs also pair people with people.
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
        one_of("queries", self.queries, QUERIES)
        one_of("verb_head", self.verb_head, VERB_HEADS)
        for name in ("text_dim", "num_texts"):
            at_least(name, getattr(self, name), 1 if self.verb_head == "text" else 0)
        one_of("backbone", self.backbone, BACKBONES)
        for name in (
            *("num_objects", "num_verbs", "num_queries", "hidden_dim", "num_heads"),
            *("feedforward_dim", "num_human_object_layers", "num_interaction_layers"),
        ):
            at_least(name, getattr(self, name), 1)
        between("person", self.person, 0, self.num_objects - 1)
        at_least("num_encoder_layers", self.num_encoder_layers, 0)
        between("dropout", self.dropout, 0, 1)
        if self.hidden_dim % self.num_heads or self.hidden_dim % 4:
            raise InputError(
                f"hidden_dim: expected a multiple of 4 and of num_heads ({self.num_heads}),"
                f" found {self.hidden_dim}"
            )

    @classmethod
    def published(cls, num_objects: int = 80, num_verbs: int = 117) -> StudentConfig:
        """The published ResNet-50 model."""
        return cls(num_objects=num_objects, num_verbs=num_verbs)

    @classmethod
    def world(cls, num_objects: int, num_verbs: int, person: int) -> StudentConfig:
        """The small model of the embedded world."""
        return cls(
            num_objects=num_objects,
            person=person,
            num_verbs=num_verbs,
            num_queries=20,
            queries="pairs",
            backbone="world",
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
            at_least(name, getattr(self, name), 0)
        between("iou_threshold", self.iou_threshold, 0, 1)
        between("interactive_threshold", self.interactive_threshold, 0, 1)

    @classmethod
    def published(cls) -> MatcherConfig:
        """The published matching."""
        return cls()

    @classmethod
    def world(cls) -> MatcherConfig:
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
        one_of("verb_loss", self.verb_loss, VERB_LOSSES)
        one_of("soft_normalisation", self.soft_normalisation, SOFT_NORMALISATIONS)
        for name, value in vars(self).items():
            if isinstance(value, (int, float)):
                at_least(name, value, 0)
        between("alpha", self.alpha, 0, 1)

    @classmethod
    def published(cls) -> LossConfig:
        """The published losses."""
        return cls()

    @classmethod
    def world(cls) -> LossConfig:
        """The soft part at a strength that depends neither on sizes nor on the split."""
        return cls(verb_soft_weight=3.0, soft_normalisation="answers")
