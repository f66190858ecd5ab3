"""`Teacher`: the interface between the builder of a cache and the model that scores its pairs.

The builder finds the pairs, and the teacher gives each of them a probability of every verb. It may
be any model: of regions, of whole images with boxes, or a table of scores from another program.
`load.py` loads teachers by name, and `text_image.py` is the base class of those that compare images
with sentences, as CLIP does.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.types import Pairs
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.plugins import create_object, settings_with_digests
from pipeline.vocabulary import Vocabulary
from teacher_cache.reader.cache import PromptEmbeddings
from teacher_cache.reader.format import INDEPENDENT, SOFTMAX, TEACHER_PART
from teacher_cache.reader.soft_targets import action_probabilities, object_actions
from teacher_cache.teachers.regions import RegionMode, crop_regions

# What probabilities may exceed 0 and 1 by, and the sum of a softmax in half precision may differ
# from 1.
RANGE_TOLERANCE, SUM_TOLERANCE = 1e-3, 1e-2
# Probabilities (P, V), optionally with embeddings (R, D) of the regions.
Scores: TypeAlias = "np.ndarray | Tensor | tuple[np.ndarray | Tensor, np.ndarray | Tensor | None]"
CheckedScores: TypeAlias = "tuple[np.ndarray, np.ndarray | None]"


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


class Teacher(ABC):
    """A frozen model that gives human-object pairs the probabilities of their verbs.

    A subclass needs the method `score`, usually a `name`, and `image_size` if it wants region
    crops. Its constructor gets the device, and the settings of `--teacher-set KEY=VALUE` as
    keyword arguments, converted to the types in its signature.

    Attributes:
        name: names the teacher in fingerprints and messages; the class by default.
        probabilities: "softmax" if the probabilities of a pair sum to 1 over the actions of its
            object, "independent" if every verb has a probability of its own.
        image_size: side of the square region crops in pixels, for a teacher that needs them.
        interpolation: interpolation of the crops' resize, "bicubic" or "bilinear".
        device: the device of the build.
        batch_size: `--batch-size`, if given; it must not change the outputs.
        region: how a union box becomes a square crop.
        text: embedded prompts of the cache, for a `TextImageTeacher`.
        settings: `--teacher-set`.
        detector_follows: whether a detector runs between batches; on a CPU it needs all cores.
    """

    name: str = ""
    probabilities: str = SOFTMAX
    image_size: int | None = None
    interpolation: str = "bicubic"
    batch_size: int | None = None
    region: RegionMode = RegionMode()
    text: PromptEmbeddings | None = None
    settings: Mapping[str, str] = {}
    detector_follows: bool = False

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.name = self.name or type(self).__qualname__

    @classmethod
    def from_settings(cls, settings: Mapping[str, str], device: torch.device) -> Teacher:
        """The teacher with these settings, texts that are converted to the types of parameters.

        Raises:
            InputError: a setting is unknown, missing or of another type.
        """
        return create_object("--teacher-set", cls, [device], settings)

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

    def fingerprint(self) -> dict[str, Any]:
        """What else determines the outputs, as JSON values: digests of weights, a version.

        The settings are in a cache's fingerprint without it, of files and folders the content; a
        value of the same name takes the place of a setting.
        """
        return {}

    def fingerprint_parts(self) -> dict[str, Any]:
        """The teacher's parts of a cache's fingerprint.

        Raises:
            InputError: they are no JSON values.
        """
        own = self.fingerprint()
        rest = {name: text for name, text in self.settings.items() if name not in own}
        own = {**settings_with_digests(rest), **own}
        if self.image_size is not None:
            own |= {"image_size": self.image_size, "interpolation": self.interpolation}
        parts = {TEACHER_PART: self.name, **{f"{TEACHER_PART}.{n}": v for n, v in own.items()}}
        if self.probabilities not in (SOFTMAX, INDEPENDENT):
            expected = f"{SOFTMAX} or {INDEPENDENT}"
            raise bad_field(f"teacher {self.name}", "probabilities", expected, self.probabilities)
        if self.probabilities != SOFTMAX:
            parts["probabilities"] = self.probabilities
        try:
            # As a reader gets them: lists for tuples.
            return json.loads(json.dumps(parts))
        except TypeError as error:
            message = f"teacher {self.name}: fingerprint: expected JSON values, found others"
            raise InputError(f"{message} ({error})") from None

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
                scores = self.score(images, pairs, vocabulary)
                yield self._check(scores, images, pairs, vocabulary)

    def _crop(self, image: TeacherImage) -> TeacherImage:
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
        given, embedded = scores if isinstance(scores, tuple) else (scores, None)
        probabilities, source = _to_numpy(given), f"teacher {self.name}"
        shape = (sum(map(len, pairs)), vocabulary.num_verbs)
        if probabilities.shape != shape:
            expected = f"probabilities of shape {shape}"
            raise bad_field(source, images[0].image_id, expected, probabilities.shape)
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
            raise bad_field(source, images[image].image_id, expected, found)
        if embedded is None:
            return probabilities.clip(0, 1), None
        embeddings = _to_numpy(embedded)
        num_regions = sum(len(image.region_boxes) for image in images)
        if embeddings.ndim != 2 or len(embeddings) != num_regions:
            expected = f"embeddings of shape ({num_regions}, D)"
            raise bad_field(source, images[0].image_id, expected, embeddings.shape)
        with np.errstate(invalid="ignore"):
            # A zero vector has no direction; it becomes NaN, which the caller refuses.
            embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        return probabilities.clip(0, 1), embeddings


def softmax_over_actions(
    logits: np.ndarray, pairs: Sequence[Pairs], vocabulary: Vocabulary
) -> np.ndarray:
    """(P, V) softmax of (P, V) logits over the actions of each pair's object, 0 for other verbs."""
    labels = np.concatenate([each.object_labels for each in pairs])
    verbs = [verb for verb, _ in vocabulary.interactions]
    return action_probabilities(np.asarray(logits)[:, verbs], labels, vocabulary)


def _to_numpy(values: np.ndarray | Tensor) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu().float().numpy()
    return np.asarray(values, dtype=np.float32)
