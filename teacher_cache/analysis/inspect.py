"""Statistics of a cache: pairs, regions, the teacher's probabilities and its top actions.

A softmax over an object's actions is sure of some action even where a person does nothing with the
object. The statistics show how sure the teacher is, and warnings name a teacher that is the same
for every pair, which no student can learn from.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.report.charts.figure import check_chart_file
from evaluation.tables import format_percent
from pipeline.datasets.dataset import open_dataset
from pipeline.utils.errors import InputError
from pipeline.utils.files import atomic_write, refuse_existing, shorten_value, write_json
from pipeline.utils.logging import get_logger
from pipeline.utils.progress import track
from pipeline.vocabulary import NO_INTERACTION, Vocabulary
from teacher_cache.analysis.figures import HISTOGRAM_BINS, draw_overview
from teacher_cache.detectors.pairing import pair_labels
from teacher_cache.reader.cache import TeacherCache, open_cache
from teacher_cache.reader.format import (
    ANNOTATED,
    INDEPENDENT,
    PAIR_OFFSETS,
    SHARDS,
    SOFTMAX,
    displayed_parts,
)
from teacher_cache.reader.soft_targets import object_actions

logger = get_logger(__name__)

# Kinds of pairs in the order of `pairs/source`.
PAIR_KINDS = ("annotated", "proposed")
MAX_TABLE_ACTIONS = 3
QUANTILES = (0.1, 0.5, 0.9)

# Thresholds of the warnings about a degenerate teacher. Only regions of objects with at least two
# actions are judged, and fewer than these in all prove nothing.
MIN_REGIONS = 20
# Relative entropy of a nearly uniform distribution: the logits' standard deviation is about 0.2.
# At CLIP's own temperature, 0.01, it is 1 or more; at temperature 1 it is below 0.1.
UNIFORM_ENTROPY = 0.99
# Shares of regions and of objects that count as nearly all: a few images are always different.
UNIFORM_SHARE, DEGENERATE_SHARE = 0.95, 0.9
# Root mean square distance of an object's distributions from their mean. CLIP with random weights
# has 0.01 on photographs, because its features are nearly equal for all of them; distributions of
# different images have 0.1 and more.
CONSTANT_DISTANCE = 0.02
# A mean probability above this one is a certain action, as a good teacher may have for an object;
# that is judged over several objects. If all actions of an object are certain, as independent
# probabilities may be, the teacher says yes to everything.
CERTAIN_PROBABILITY = 0.99
# An object's regions may be of one photograph, and so have one action. That is judged over objects
# with some regions, and without the two that have the most.
SINGLE_ACTION_SHARE, MIN_SINGLE_ACTION_REGIONS, NUM_IGNORED_OBJECTS = 0.98, 5, 2


def inspect_cache(
    cache: Path,
    json: Path | None = None,
    figure: Path | None = None,
    overwrite: bool = False,
    dataset: Path | None = None,
) -> None:
    """Prints the statistics of a cache, and writes them to a JSON file and a figure.

    Args:
        cache: the cache folder.
        json: file of the statistics to write.
        figure: file of a figure of the statistics to write.
        overwrite: whether existing files may be replaced.
        dataset: the dataset folder that the cache was built from, for the statistics of annotated
            pairs labelled `no_interaction`.

    Raises:
        InputError: the cache is unfinished or damaged, was built from other annotations, or a file
            exists.
    """
    if json is not None:
        refuse_existing(json, overwrite)
    if figure is not None:
        check_chart_file(figure, overwrite)
        if json is not None and json.resolve() == figure.resolve():
            raise InputError(
                f"--figure: expected another file than --json, found {figure} for both"
            )
    opened = open_cache(cache)
    overview = compute_overview(opened)
    if dataset is not None:
        overview[NO_INTERACTION] = inspect_no_interaction(opened, dataset)
    title = cache.resolve().name
    if opened.limit is not None:
        title += f" (built with --limit {opened.limit})"
    with ExitStack() as stack:
        # If the figure cannot be written, neither file is.
        if json is not None:
            write_json(stack.enter_context(atomic_write(json)), overview)
        if figure is not None:
            draw_overview(figure, title, overview)
    print(title)
    for line in format_overview(overview):
        print(line)
    for line in overview["warnings"]:
        logger.warning(f"{cache}: {line}")


def compute_overview(cache: TeacherCache) -> dict[str, Any]:
    """Statistics of a cache as JSON values.

    Returns:
        `counts` of images, pairs and regions; `file_bytes` and `raw_bytes` of shards and of their
        arrays; `pairs_per_image`; `repeated_unions`, the share of pairs that have their union
        region in common with an earlier pair; `confidence`, the distribution of the probabilities
        of top actions by kind of pairs; `entropy`, that of the relative entropies, see
        `relative_entropy`; `top_actions`, numbers of pairs by object and top action, most frequent
        first; `object_entropy`, the mean relative entropy by object, None for an object with one
        action; `parts` of the fingerprint; `warnings`, a line for what is degenerate.

    Raises:
        InputError: a shard is missing or damaged.
    """
    vocabulary = cache.vocabulary
    top_actions = np.zeros((vocabulary.num_objects, vocabulary.num_verbs), dtype=np.int64)
    confidence: dict[str, list[np.ndarray]] = {kind: [] for kind in PAIR_KINDS}
    entropies: dict[str, list[np.ndarray]] = {kind: [] for kind in PAIR_KINDS}
    spread = TeacherSpread(vocabulary)
    by_kind = np.zeros(len(PAIR_KINDS), dtype=np.int64)
    pairs_per_image = [np.zeros(0, dtype=np.int64)]
    num_regions = raw_bytes = file_bytes = 0
    shards = range(cache.num_shards)
    for shard in track(shards, len(shards), "Counting", "shards", brief=True):
        arrays = cache.shard_arrays(shard)
        sources = np.minimum(arrays["pairs/source"], 1)
        by_kind += np.bincount(sources, minlength=len(PAIR_KINDS))
        pairs_per_image.append(np.diff(arrays[PAIR_OFFSETS]))
        num_regions += cache.shard_layout(shard).num_regions
        raw_bytes += sum(array.nbytes for array in arrays.values())
        name = cache.manifest["shards"][shard]["name"]
        file_bytes += (cache.path / SHARDS / name).stat().st_size
        probabilities = arrays["pairs/action_probabilities"]
        # Non-negative float16 numbers are ordered like their bits, and numpy compares integers
        # many times faster.
        best = probabilities.view(np.uint16).argmax(axis=1)
        top = probabilities[np.arange(len(best)), best]
        # All probabilities are 0 for an object without interactions other than `no_interaction`.
        has_action = top > 0
        np.add.at(top_actions, (arrays["pairs/object_label"][has_action], best[has_action]), 1)
        labels = arrays["pairs/object_label"].astype(np.int64)
        entropy = relative_entropy(probabilities, labels, vocabulary, cache.probabilities)
        spread.add(labels, arrays["pairs/region"], probabilities, entropy, best)
        for source, kind in enumerate(PAIR_KINDS):
            confidence[kind].append(top[has_action & (sources == source)])
            entropies[kind].append(entropy[~np.isnan(entropy) & (sources == source)])
    counts = np.concatenate(pairs_per_image)
    num_pairs = int(by_kind.sum())
    return {
        "counts": {
            "images": len(cache),
            "failed_images": len(cache.failed),
            "images_without_pairs": int((counts == 0).sum()),
            "shards": len(shards),
            **{f"{kind}_pairs": int(by_kind[row]) for row, kind in enumerate(PAIR_KINDS)},
            "regions": num_regions,
        },
        "file_bytes": file_bytes,
        "raw_bytes": raw_bytes,
        "pairs_per_image": {
            "mean": num_pairs / len(counts) if len(counts) else None,
            **{
                name: int(np.quantile(counts, share, method="lower")) if len(counts) else 0
                for name, share in zip(("p10", "median", "p90"), QUANTILES, strict=True)
            },
            "max": int(counts.max(initial=0)),
            "images_by_pairs": np.bincount(counts, minlength=1).tolist(),
        },
        "repeated_unions": 1 - num_regions / num_pairs if num_pairs else None,
        "confidence": {kind: _distribution(values) for kind, values in confidence.items()},
        "entropy": {kind: _distribution(values) for kind, values in entropies.items()},
        "top_actions": {
            vocabulary.objects[label].replace("_", " "): {
                vocabulary.verbs[verb].replace("_", " "): int(top_actions[label, verb])
                for verb in _descending(top_actions[label])
            }
            for label in _descending(top_actions.sum(axis=1))
        },
        "object_entropy": {
            vocabulary.objects[label].replace("_", " "): spread.mean_entropy(label)
            for label in _descending(top_actions.sum(axis=1))
        },
        "parts": {name: shorten_value(value) for name, value in cache.manifest["parts"].items()},
        "warnings": spread.warnings("prompts" in cache.manifest["parts"]),
    }


def relative_entropy(
    probabilities: np.ndarray,
    object_labels: np.ndarray,
    vocabulary: Vocabulary,
    kind: str = SOFTMAX,
) -> np.ndarray:
    """Entropy of the probabilities of an object's actions, relative to its maximum.

    Args:
        probabilities: (P, V) probability of every action; 0 for verbs that form no interaction with
            the object.
        object_labels: (P,) object index of every pair.
        vocabulary: defines the number of actions A of an object, without `no_interaction`.
        kind: see `TeacherCache.probabilities`. The entropy of independent probabilities is the mean
            of the actions' binary entropies: 1 if all of them are 0.5.

    Returns:
        (P,) float64 from 0, one certain action, to 1, all A actions equally probable: the entropy
        divided by log A. NaN for an object with less than two actions.
    """
    values = probabilities.astype(np.float32)
    num_actions = _count_actions(vocabulary)[object_labels]
    if kind == INDEPENDENT:
        binary = (_xlogx(values) + _xlogx(1 - values)).sum(axis=1, dtype=np.float64)
        counts = np.where(num_actions > 1, num_actions, np.nan)
        return (-binary / np.log(2) / counts).clip(0, 1)
    # Probabilities rounded to float16 do not sum to 1.
    sums = values.sum(axis=1, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        entropy = np.log(sums) - _xlogx(values).sum(axis=1, dtype=np.float64) / sums
        relative = np.where(num_actions > 1, entropy / np.log(num_actions), np.nan)
    return relative.clip(0, 1)


def _xlogx(values: np.ndarray) -> np.ndarray:
    """x log x, and 0 for 0."""
    return values * np.log(values, out=np.zeros_like(values), where=values > 0)


def _count_actions(vocabulary: Vocabulary) -> np.ndarray:
    """(O,) number of actions of every object, without `no_interaction`."""
    return object_actions(vocabulary).sum(axis=1)


class TeacherSpread:
    """Tells how much the teacher's probabilities differ between the regions of each object.

    Pairs of one object and region count once, as the teacher sees the same pixels. Only sums are
    kept, so that caches of any size can be read shard by shard.

    Args:
        vocabulary: the cache's vocabulary.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        num_objects, num_verbs = vocabulary.num_objects, vocabulary.num_verbs
        self._num_actions = _count_actions(vocabulary)
        self._has_choice = self._num_actions > 1
        self._num_regions = np.zeros(num_objects, dtype=np.int64)
        self._num_uniform = np.zeros(num_objects, dtype=np.int64)
        self._entropy_sums = np.zeros(num_objects)
        self._sums = np.zeros((num_objects, num_verbs))
        self._square_sums = np.zeros(num_objects)
        self._top_actions = np.zeros((num_objects, num_verbs), dtype=np.int64)

    def add(
        self,
        object_labels: np.ndarray,
        regions: np.ndarray,
        probabilities: np.ndarray,
        entropy: np.ndarray,
        best: np.ndarray,
    ) -> None:
        """Adds the pairs of a shard.

        Args:
            object_labels: (P,) object indices.
            regions: (P,) regions of the shard.
            probabilities: (P, V) probability of every action.
            entropy: (P,) relative entropies.
            best: (P,) the most probable verbs.
        """
        num_objects = len(self._num_regions)
        keys = regions.astype(np.int64) * num_objects + object_labels
        rows = np.unique(keys, return_index=True)[1]
        rows = rows[self._has_choice[object_labels[rows]]]
        if not len(rows):
            return
        labels = object_labels[rows]
        self._num_regions += np.bincount(labels, minlength=num_objects)
        is_uniform = entropy[rows] >= UNIFORM_ENTROPY
        self._num_uniform += np.bincount(labels[is_uniform], minlength=num_objects)
        self._entropy_sums += np.bincount(labels, entropy[rows], minlength=num_objects)
        values = probabilities[rows].astype(np.float64)
        squares = np.square(values).sum(axis=1)
        self._square_sums += np.bincount(labels, squares, minlength=num_objects)
        one_hot = np.eye(num_objects)[labels]
        self._sums += one_hot.T @ values
        np.add.at(self._top_actions, (labels, best[rows]), 1)

    def mean_entropy(self, label: int) -> float | None:
        """Mean relative entropy of the regions of an object; None without regions or choice."""
        count = self._num_regions[label]
        return float(self._entropy_sums[label] / count) if count else None

    def warnings(self, has_prompts: bool = True) -> list[str]:
        """A line that says how the teacher is degenerate; empty for a healthy one.

        `has_prompts` says whether the cache can be rescored.

        Uniform probabilities are also constant, and constant ones have a single top action, so
        that only the first of the three is reported.
        """
        if self._num_regions.sum() < MIN_REGIONS:
            return []
        uniform = self._num_uniform.sum() / self._num_regions.sum()
        if uniform >= UNIFORM_SHARE:
            remedy = " (eoid-cache rescore --temperature)" if has_prompts else ""
            return [
                f"the teacher's probabilities are nearly uniform for {format_percent(uniform, 0)} %"
                " of the regions, so that soft labels say nothing: check the teacher's weights"
                f" and the temperature{remedy}"
            ]
        judged = np.flatnonzero(self._num_regions > 1)
        counts = self._num_regions[judged]
        means = self._sums[judged] / counts[:, None]
        # Unbiased, since an object may have two regions.
        squares = self._square_sums[judged] - counts * np.square(means).sum(axis=1)
        is_constant = squares < CONSTANT_DISTANCE**2 * (counts - 1)
        num_certain = (means >= CERTAIN_PROBABILITY).sum(axis=1)
        is_constant &= (num_certain == 0) | (num_certain == self._num_actions[judged])
        num_constant = counts[is_constant].sum()
        if num_constant >= max(DEGENERATE_SHARE * counts.sum(), MIN_REGIONS):
            return [
                "the teacher has the same probabilities for all pairs of an object, for"
                f" {is_constant.sum()} of {len(judged)} objects with several regions:"
                " check the images and the teacher's weights"
            ]
        judged = np.flatnonzero(self._num_regions >= MIN_SINGLE_ACTION_REGIONS)
        counts = self._num_regions[judged]
        tops = self._top_actions[judged].max(axis=1)
        is_single = tops >= SINGLE_ACTION_SHARE * counts
        num_others = np.sort(counts)[:-NUM_IGNORED_OBJECTS].sum()
        if (
            num_others >= MIN_REGIONS
            and tops.sum() >= SINGLE_ACTION_SHARE * counts.sum()
            and is_single.mean() >= DEGENERATE_SHARE
        ):
            return [
                "the teacher's best action is the same for all pairs of an object, for"
                f" {is_single.sum()} of {len(judged)} objects with {MIN_SINGLE_ACTION_REGIONS}"
                " regions or more: check the prompts and the teacher's weights"
            ]
        return []


def inspect_no_interaction(cache: TeacherCache, dataset: Path) -> dict[str, Any] | None:
    """Statistics of the annotated pairs labelled `no_interaction`.

    Args:
        cache: the cache.
        dataset: the dataset folder that it was built from.

    Returns:
        Number of `annotated_pairs`, the `share` labelled `no_interaction`, and the `confidence`,
        the distribution of the probabilities of their top actions; None if the vocabulary has no
        such verb.

    Raises:
        InputError: the dataset is invalid, or the cache was built from other annotations.
    """
    data = open_dataset(dataset)
    part = str(cache.manifest["parts"].get("part"))
    loaded = data.load(part).limited(cache.limit)
    cache.check(data.vocabulary, loaded.digest, part)
    verb = data.vocabulary.no_interaction
    if verb is None:
        logger.info(f"{dataset}: the vocabulary has no verb {NO_INTERACTION}")
        return None
    num_pairs, top = 0, []
    for annotation in loaded.annotations:
        if annotation.image_id in cache:
            outputs = cache[annotation.image_id]
            # The annotated pairs are in the order of their labels.
            values = outputs.probabilities[outputs.pairs.sources == ANNOTATED].max(axis=1)
            num_pairs += len(values)
            top.append(values[pair_labels(annotation, data.vocabulary)[:, verb]])
    confidence = _distribution(top)
    return {
        "annotated_pairs": num_pairs,
        "share": confidence["pairs"] / num_pairs if num_pairs else None,
        "confidence": confidence,
    }


def _distribution(parts: Iterable[np.ndarray]) -> dict[str, Any]:
    """Number, mean, quantiles, maximum and histogram of numbers from 0 to 1."""
    values = np.concatenate([np.zeros(0), *parts])
    numbers: list[float | None] = [None] * 5
    if len(values):
        quantiles = np.quantile(values, QUANTILES).tolist()
        numbers = [float(values.mean()), *quantiles, float(values.max())]
    return {
        "pairs": len(values),
        **dict(zip(("mean", "p10", "p50", "p90", "max"), numbers, strict=True)),
        "histogram": np.histogram(values, HISTOGRAM_BINS, (0, 1))[0].tolist(),
    }


def _descending(counts: np.ndarray) -> list[int]:
    """Indices of the counts above 0, highest first."""
    return [int(index) for index in np.argsort(-counts, kind="stable") if counts[index]]


def format_overview(overview: dict[str, Any]) -> list[str]:
    """Lines of a text table of a cache's statistics."""
    per_image = overview["pairs_per_image"]
    rows = {
        **{name.replace("_", " "): f"{count:,}" for name, count in overview["counts"].items()},
        "megabytes of shards": f"{overview['file_bytes'] / 1e6:,.1f}",
        "bytes per raw byte": f"{overview['file_bytes'] / max(overview['raw_bytes'], 1):.3f}",
        "repeated unions": f"{format_percent(overview['repeated_unions'])} %",
    }
    no_interaction = overview.get(NO_INTERACTION)
    if no_interaction is not None:
        share = format_percent(no_interaction["share"])
        rows["labelled no interaction"] = (
            f"{share} % of {no_interaction['annotated_pairs']:,} annotated pairs"
        )
    lines = [f"  {name:<24}{value}" for name, value in rows.items()]
    columns = ("mean", "10 %", "median", "90 %", "max")
    lines.append(f"{'distributions':<44}" + "".join(f"{name:>9}" for name in columns))
    numbers = [per_image[name] for name in ("p10", "median", "p90", "max")]
    cells = [f"{per_image['mean'] or 0:.1f}", *(f"{number:,}" for number in numbers)]
    lines.append(f"  {'pairs of an image':<42}" + "".join(f"{cell:>9}" for cell in cells))
    distributions = {
        f"{title}, {kind}": values
        for title, name in (
            ("probability of best action", "confidence"),
            ("entropy / maximum", "entropy"),
        )
        for kind, values in overview[name].items()
    }
    if no_interaction is not None:
        distributions["probability of best action, no interaction"] = no_interaction["confidence"]
    for name, values in distributions.items():
        if values["pairs"]:
            numbers = [values[column] for column in ("mean", "p10", "p50", "p90", "max")]
            lines.append(f"  {name:<42}" + "".join(f"{number:>9.2f}" for number in numbers))
    top_actions = overview["top_actions"]
    if top_actions:
        width = max(map(len, top_actions)) + 2
        lines += ["best action by object", f"  {'':<{width}}{'pairs':>10}{'entropy':>10}"]
        for name, counts in top_actions.items():
            total = sum(counts.values())
            actions = ", ".join(
                f"{verb} {format_percent(count / total, 0)} %"
                for verb, count in list(counts.items())[:MAX_TABLE_ACTIONS]
            )
            entropy = overview["object_entropy"][name]
            cell = "-" if entropy is None else f"{entropy:.2f}"
            lines.append(f"  {name:<{width}}{total:>10,}{cell:>10}  {actions}")
    parts = displayed_parts(overview["parts"])
    # Settings of own teachers and detectors can have long names.
    width = max(24, *(len(name) + 2 for name in parts))
    return [*lines, "made from", *(f"  {name:<{width}}{value}" for name, value in parts.items())]
