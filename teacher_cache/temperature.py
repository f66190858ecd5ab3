"""Fits the teacher's temperature to the labels that training may see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import InputError
from pipeline.files import refuse_existing, write_json
from pipeline.progress import track
from pipeline.splits import load_split
from pipeline.vocabulary import Vocabulary
from teacher_cache.quality import HeldImages
from teacher_cache.reader import TeacherCache, TeacherText, open_cache
from teacher_cache.seen_pairs import seen_pairs

# Factors on cosines between which the best is looked for; CLIP itself stays below 100.
LEAST_SCALE, LARGEST_SCALE = 1e-2, 1e3
# Halvings of that range, in logarithms: one part in a million.
HALVINGS = 24


@dataclass(frozen=True)
class Labelled:
    """The labels to fit to.

    Attributes:
        dataset: the dataset folder that the cache was made from.
        split: a split's name or a user's TOML file; its unseen labels are not looked at.
    """

    dataset: Path
    split: str


@dataclass(frozen=True, eq=False)
class Judged:
    """K annotated pairs with seen labels, and what the teacher makes of them.

    Attributes:
        cosines: (K, V) float32 between a pair's region and the prompts of its object's actions;
            minus infinity for verbs that it is not asked about.
        labels: (K, V) bool, at least one each.
    """

    cosines: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Fit:
    """A temperature and how well the seen labels go with it.

    Attributes:
        scale: factor on cosines, the inverse of the temperature.
        likelihood: mean log-likelihood of a pair's labels among its object's seen actions.
        confidence: mean probability of the likeliest action.
    """

    scale: float
    likelihood: float
    confidence: float


def judged_pairs(
    cache: TeacherCache, text: TeacherText, labelled: Labelled, vocabulary: Vocabulary
) -> Judged:
    """Compares the annotated pairs that have seen labels with the prompts.

    Args:
        cache: with region embeddings.
        text: the prompts to compare with, those of `vocabulary`.
        labelled: the labels.
        vocabulary: of cache and dataset.

    Raises:
        InputError: dataset or split do not fit, or no pair has a seen label and an alternative.
    """
    # Rescoring without labels opens no picture, and loads nothing that could.
    from pipeline.datasets import open_dataset

    dataset = open_dataset(labelled.dataset)
    split = load_split(dataset.vocabulary, labelled.split)
    part = str(cache.manifest["parts"].get("part"))
    loaded = dataset.load(part)
    cache.check(dataset.vocabulary, loaded.digest, part)
    held = HeldImages(cache, loaded.annotations)
    cosines = [np.zeros((0, vocabulary.num_verbs), np.float32)]
    labels = [np.zeros((0, vocabulary.num_verbs), bool)]
    for pairs in track(
        seen_pairs(held, split, vocabulary), len(cache), "Comparing", "images", brief=True
    ):
        embeddings = pairs.answers.embeddings
        if not len(pairs.rows) or embeddings is None:
            continue
        looks = embeddings[pairs.answers.regions[pairs.rows]].astype(np.float32)
        # A verb that makes no interaction has the number -1, whose column nobody looks at.
        prompts = vocabulary.interaction_ids[:, pairs.object_labels].T
        found = np.take_along_axis(looks @ text.embeddings.T, prompts, axis=1)
        cosines.append(np.where(pairs.possible, found, -np.inf).astype(np.float32))
        labels.append(pairs.labels)
    judged = Judged(np.concatenate(cosines), np.concatenate(labels))
    if not len(judged):
        raise InputError(
            f"{labelled.dataset}: expected annotated pairs with a seen label under split"
            f" {split.name} and a second seen action of their object, found none"
        )
    return judged


def fit_scale(judged: Judged) -> Fit:
    """The factor on cosines under which the seen labels are likeliest.

    The log-likelihood is concave in the factor, so its slope is followed to 0. A teacher that is
    never wrong gets the largest factor, one that knows less than nothing the smallest.
    """
    low, high = np.log(LEAST_SCALE), np.log(LARGEST_SCALE)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _slope(judged, np.exp(middle)) > 0 else (low, middle)
    return describe_scale(judged, float(np.exp((low + high) / 2)))


def describe_scale(judged: Judged, scale: float) -> Fit:
    """How well the seen labels go with a factor on cosines."""
    probabilities, normalisers = _softmax(judged, scale)
    wanted = scale * _of_labels(judged) - normalisers
    return Fit(scale, float(wanted.mean()), float(probabilities.max(axis=1).mean()))


def _slope(judged: Judged, scale: float) -> float:
    """Derivative of the mean log-likelihood by the factor."""
    probabilities, _ = _softmax(judged, scale)
    # Gaps are summed, not sums compared: of a sure teacher's a tiny rest would be lost.
    gaps = _of_labels(judged)[:, None] - judged.cosines
    return float((probabilities * np.where(probabilities > 0, gaps, 0)).sum(axis=1).mean())


def _of_labels(judged: Judged) -> np.ndarray:
    """(K,) the mean cosine of each pair's labels: several labels of a pair count as one."""
    return np.where(judged.labels, judged.cosines, 0).sum(axis=1) / judged.labels.sum(axis=1)


def _softmax(judged: Judged, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """(K, V) probabilities and the (K,) logarithms of what they are divided by."""
    logits = np.float64(scale) * judged.cosines
    largest = logits.max(axis=1, keepdims=True)
    weights = np.exp(logits - largest)
    totals = weights.sum(axis=1, keepdims=True)
    return weights / totals, (largest + np.log(totals))[:, 0]


@dataclass(frozen=True)
class FitConfig:
    """What to fit.

    Attributes:
        cache: with region embeddings.
        labelled: the labels.
        json: file for the numbers, where wanted.
        overwrite: whether it may be replaced.
    """

    cache: Path
    labelled: Labelled
    json: Path | None = None
    overwrite: bool = False


def fit_temperature(config: FitConfig, say: Callable[[str], None] = print) -> Fit:
    """Fits a cache's temperature and tells it; changes nothing.

    Raises:
        InputError: bad input, or a cache without embeddings.
    """
    if config.json is not None:
        refuse_existing(config.json, config.overwrite)
    cache = open_cache(config.cache)
    require_embeddings(cache)
    judged = judged_pairs(cache, cache.teacher, config.labelled, cache.vocabulary)
    before, after = describe_scale(judged, cache.teacher.logit_scale), fit_scale(judged)
    for line in fit_lines(judged, before, after):
        say(line)
    if config.json is not None:
        write_json(
            config.json,
            {"pairs": len(judged), "before": vars(before), "after": vars(after)},
        )
    return after


def fit_lines(judged: Judged, before: Fit, after: Fit) -> list[str]:
    """What a fit did, for people."""
    lines = [f"{len(judged)} annotated pairs with seen labels"]
    for title, fit in (("before", before), ("fitted", after)):
        lines.append(
            f"{title}: temperature {1 / fit.scale:.4g} (factor {fit.scale:.4g}), log-likelihood"
            f" {fit.likelihood:.4f}, mean confidence {100 * fit.confidence:.1f} %"
        )
    share = (judged.labels & (judged.cosines == judged.cosines.max(axis=1, keepdims=True))).any(1)
    lines.append(f"accuracy among seen actions: {100 * share.mean():.1f} %")
    return lines


def require_embeddings(cache: TeacherCache) -> None:
    """Makes sure that a cache can be asked anew.

    Raises:
        InputError: it holds no embeddings of its regions.
    """
    if not cache.has_embeddings:
        raise InputError(
            f"{cache.path}: expected region embeddings, found none (it was built with"
            " --no-embeddings, or is an ensemble); only a new build can ask anew"
        )
