"""`Teacher`: the interface between the builder of a cache and the model that scores its pairs.

The builder finds the pairs, and the teacher gives each of them a probability of every verb. It may
be any model: of regions, of whole images with boxes, or a table of scores from another program.
`load.py` loads teachers by name, and `text_image.py` is the base class of those that compare images
with sentences, as CLIP does.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import torch
from msgspec import Meta, Struct
from PIL import Image
from torch import Tensor

from pipeline.types import Pairs
from pipeline.utils.devices import to_numpy
from pipeline.utils.errors import bad_field
from pipeline.utils.plugins import (
    Plugin,
    create_object,
    describe_plugin,
    fingerprint_parts,
    user_errors,
)
from pipeline.utils.schema import convert
from pipeline.vocabulary import Vocabulary
from teacher_cache.reader.cache import PromptEmbeddings
from teacher_cache.reader.format import PROBABILITIES_PART, SOFTMAX, TEACHER_PART
from teacher_cache.reader.soft_targets import action_probabilities, object_actions
from teacher_cache.teachers.regions import RegionMode, crop_regions

# What probabilities may exceed 0 and 1 by, and the sum of a softmax in half precision may differ
# from 1.
RANGE_TOLERANCE, SUM_TOLERANCE = 1e-3, 1e-2
# Probabilities (P, V), optionally with embeddings (R, D) of the regions.
Scores: TypeAlias = "np.ndarray | Tensor | tuple[np.ndarray | Tensor, np.ndarray | Tensor | None]"
CheckedScores: TypeAlias = "tuple[np.ndarray, np.ndarray | None]"


class _Attributes(Struct):
    """Attributes of a teacher that a user's class may set."""

    probabilities: Literal["softmax", "independent"]
    # Larger crops are mistakes, for which the memory does not suffice.
    image_size: Annotated[int, Meta(ge=1, le=4096)] | None
    interpolation: Literal["bicubic", "bilinear"]


@dataclass(frozen=True, eq=False)
class TeacherImage:
    """An image whose P pairs are to be scored.

    Attributes:
        image_id: file name of the image.
        pixels: the whole image, upright, RGB.
        region_boxes: (R, 4) float32 xyxy in pixels, the distinct union boxes of the pairs; with
            `--level image` one box, the whole image.
        region_indices: (P,) int64, the row of `region_boxes` of each pair.
        regions: (R, 3, S, S) uint8 crops of the regions on the teacher's device, S being its
            `image_size`; None if that is None.
    """

    image_id: str
    pixels: Image.Image
    region_boxes: np.ndarray
    region_indices: np.ndarray
    regions: Tensor | None = None


# Images of one size, and the pairs of each.
Batch: TypeAlias = tuple[Sequence[TeacherImage], Sequence[Pairs]]


class Teacher(Plugin):
    """A frozen model that gives human-object pairs the probabilities of their verbs.

    A subclass needs the method `score`, usually a `name`, and `image_size` if it wants region
    crops. Its constructor gets the device, which it passes to this one, and the settings of
    `--teacher-set KEY=VALUE` as keyword arguments, converted to the types in its signature.

    Attributes:
        probabilities: "softmax" if the probabilities of a pair sum to 1 over the actions of its
            object, "independent" if every verb has a probability of its own.
        image_size: side of the square region crops in pixels, for a teacher that needs them.
        interpolation: interpolation of the crops' resize, "bicubic" or "bilinear".
        batch_size: `--batch-size`, if given; it must not change the outputs.
        region: how a union box becomes a square crop.
        text: embedded prompts of the cache, for a `TextImageTeacher`.
        detector_follows: whether a detector runs between batches; on a CPU it needs all cores.
    """

    plugin_kind = TEACHER_PART
    probabilities: str = SOFTMAX
    image_size: int | None = None
    interpolation: str = "bicubic"
    batch_size: int | None = None
    region: RegionMode = RegionMode()
    text: PromptEmbeddings | None = None
    detector_follows: bool = False
    # Width of the embeddings that were returned so far.
    _embedding_width: int | None = None

    @classmethod
    def from_settings(cls, settings: Mapping[str, str], device: torch.device) -> Teacher:
        """The teacher with these settings, texts that are converted to the types of parameters.

        Raises:
            InputError: a setting is unknown, missing or of another type.
        """
        return create_object("--teacher-set", cls, [device], settings)

    def check_attributes(self) -> None:
        """See `Plugin.check_attributes`."""
        super().check_attributes()
        values = {name: getattr(self, name) for name in _Attributes.__struct_fields__}
        convert(values, _Attributes, describe_plugin(self))

    @abstractmethod
    def score(
        self, images: Sequence[TeacherImage], pairs: Sequence[Pairs], vocabulary: Vocabulary
    ) -> Scores:
        """Probabilities of all verbs for the pairs of some images.

        Args:
            images: images of one size, each with at least one pair.
            pairs: for each image its pairs; boxes are xyxy in pixels of the image.
            vocabulary: names of verbs and objects, and which of them form interactions.

        Returns:
            (P, V) probabilities of the P pairs of all images, in their order; verbs that form no
            interaction with a pair's object, and `no_interaction`, are set to 0 by the caller. Or
            a tuple of these and (R, D) embeddings of the regions of all images, in their order.
        """

    def fingerprint_parts(self) -> dict[str, Any]:
        """The teacher's parts of a cache's fingerprint; see `plugins.fingerprint_parts`."""
        crops: dict[str, Any] = {}
        if self.image_size is not None:
            crops = {"image_size": self.image_size, "interpolation": self.interpolation}
        parts = {TEACHER_PART: self.name, **fingerprint_parts(self, crops)}
        if self.probabilities != SOFTMAX:
            parts[PROBABILITIES_PART] = self.probabilities
        return parts

    def score_batches(
        self, batches: Iterable[Batch], vocabulary: Vocabulary
    ) -> Iterator[CheckedScores]:
        """Scores of the pairs and regions of all batches, in their order, in any portions.

        A teacher that works on several batches at a time replaces this method. `batches` finds the
        pairs of a batch when it is asked for.

        Raises:
            InputError: `score` returned something else than probabilities of all pairs.
        """
        for batch in batches:
            with_pairs = [each for each in zip(*batch, strict=True) if len(each[1])]
            if with_pairs:
                images = [self._crop(image) for image, _ in with_pairs]
                pairs = [own for _, own in with_pairs]
                # What a teacher writes into arrays must not be in the cache.
                given = [
                    Pairs(**{name: array.copy() for name, array in vars(own).items()})
                    for own in pairs
                ]
                with user_errors(self, "score"):
                    scores = self.score(images, given, vocabulary)
                yield self._check(scores, images, pairs, vocabulary)

    def _crop(self, image: TeacherImage) -> TeacherImage:
        boxes, indices = image.region_boxes.copy(), image.region_indices.copy()
        image = replace(image, region_boxes=boxes, region_indices=indices)
        if self.image_size is None:
            return image
        size, device, interpolation = self.image_size, self.device, self.interpolation
        return replace(
            image,
            regions=crop_regions(
                image.pixels, image.region_boxes, size, self.region, device, interpolation
            ),
        )

    def _check(
        self,
        scores: Scores,
        images: Sequence[TeacherImage],
        pairs: Sequence[Pairs],
        vocabulary: Vocabulary,
    ) -> CheckedScores:
        """Scores as float32 arrays: 0 for verbs without interaction, embeddings normalised."""
        first = images[0].image_id
        given, embedded = scores, None
        if isinstance(scores, tuple):
            if len(scores) != 2:
                expected = "probabilities, or a tuple of these and embeddings"
                raise bad_field(describe_plugin(self), first, expected, f"a tuple of {len(scores)}")
            given, embedded = scores
        shape = (sum(map(len, pairs)), vocabulary.num_verbs)
        probabilities = to_array(self, given, first, "probabilities", shape)
        actions = object_actions(vocabulary)[np.concatenate([one.object_labels for one in pairs])]
        probabilities = np.where(actions, probabilities, np.float32(0))
        # The comparisons are False for NaN.
        in_range = (probabilities >= -RANGE_TOLERANCE) & (probabilities <= 1 + RANGE_TOLERANCE)
        valid, expected = in_range.all(axis=1), "probabilities from 0 to 1"
        if self.probabilities == SOFTMAX:
            expected += " that sum to 1 over the object's actions (or independent ones)"
            sums_to_one = np.abs(probabilities.sum(axis=1) - 1) <= SUM_TOLERANCE
            valid &= sums_to_one | ~actions.any(axis=1)
        for row in np.flatnonzero(~valid)[:1]:
            image = np.repeat(np.arange(len(images)), list(map(len, pairs)))[row]
            found = probabilities[row, actions[row]].tolist()
            raise bad_field(describe_plugin(self), images[image].image_id, expected, found)
        # Without the sign of -0.0, which readers that compare bits would take for a large number.
        probabilities = np.abs(probabilities.clip(0, 1))
        if embedded is None:
            return probabilities, None
        num_regions = sum(len(image.region_boxes) for image in images)
        width = self._embedding_width
        embeddings = to_array(self, embedded, first, "embeddings", (num_regions, width))
        self._embedding_width = embeddings.shape[1]
        with np.errstate(invalid="ignore"):
            # A zero vector has no direction; it becomes NaN, which the caller refuses.
            embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        return probabilities, embeddings


def softmax_over_actions(
    logits: np.ndarray, pairs: Sequence[Pairs], vocabulary: Vocabulary
) -> np.ndarray:
    """(P, V) softmax of (P, V) logits over the actions of each pair's object, 0 for other verbs."""
    labels = np.concatenate([each.object_labels for each in pairs])
    verbs = [verb for verb, _ in vocabulary.interactions]
    return action_probabilities(np.asarray(logits)[:, verbs], labels, vocabulary)


def to_array(
    teacher: Teacher, values: object, where: str, what: str, shape: tuple[int, int | None]
) -> np.ndarray:
    """What a teacher's method returned, as a float32 array of a shape; None stands for any width.

    Raises:
        InputError: it is something else; names `where` it was returned.
    """
    source, expected = describe_plugin(teacher), f"{what} of shape ({shape[0]}, {shape[1] or 'D'})"
    try:
        array = to_numpy(values)
    except ValueError:
        raise bad_field(source, where, expected, type(values).__name__) from None
    # Others would be converted too: texts are read, imaginary parts dropped.
    if array.ndim and not np.can_cast(array.dtype, np.float32, "same_kind"):
        raise bad_field(source, where, f"{expected} of real numbers", f"an array of {array.dtype}")
    if array.ndim != 2 or array.shape != (shape[0], shape[1] or array.shape[1]):
        found = array.shape if array.ndim else type(values).__name__
        raise bad_field(source, where, expected, found)
    # What is too large becomes infinite, which is refused later.
    with np.errstate(over="ignore"):
        return array.astype(np.float32)
