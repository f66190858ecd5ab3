"""Draws one image with its pairs and what the teacher says about them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from evaluation.draw_pairs import PairView, draw_pairs
from pipeline.datasets import Dataset, open_dataset
from pipeline.errors import InputError
from pipeline.files import refuse_existing, replacing
from pipeline.images import read_image
from pipeline.picture_sizes import compare_sizes
from pipeline.types import Annotation
from teacher_cache.format import ImageAnswers
from teacher_cache.pairing import ANNOTATED, pair_labels
from teacher_cache.reader import TeacherCache, open_cache

KINDS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


@dataclass(frozen=True)
class ShowConfig:
    """What to draw.

    Attributes:
        cache: the cache folder.
        image: id of the image, its file name.
        dataset: the dataset that the cache was made from.
        out: the picture; its ending decides the kind.
        top: so many actions of a pair.
        pairs: at most so many pairs: the annotated ones, then the surest proposals.
        overwrite: whether an existing picture may be replaced.
    """

    cache: Path
    image: str
    dataset: Path
    out: Path
    top: int = 3
    pairs: int = 8
    overwrite: bool = False


def show(config: ShowConfig, say: Callable[[str], None] = print) -> None:
    """Draws an image, and tells its pairs.

    Raises:
        InputError: bad input, an image that the cache does not hold, or another dataset.
    """
    if config.out.suffix.lower() not in KINDS:
        raise InputError(f"{config.out}: expected a name that ends in {', '.join(KINDS)}")
    refuse_existing(config.out, config.overwrite)
    cache = open_cache(config.cache)
    image_id = find_image(cache, config.image)
    dataset = open_dataset(config.dataset)
    part = str(cache.manifest["parts"].get("part"))
    loaded = dataset.load(part)
    cache.check(dataset.vocabulary, loaded.digest, part)
    annotation = next(each for each in loaded.annotations if each.image_id == image_id)
    sizes = compare_sizes(dataset, replace(loaded, annotations=(annotation,)))
    sizes.refuse()
    for line in sizes.lines():
        say(line)
    image = read_image(dataset.part(part).images / image_id)
    answers = cache[image_id]
    order = choose_pairs(answers, config.pairs)
    views = [view_pair(row, annotation, answers, dataset, config.top) for row in order.tolist()]
    left = len(answers.pairs) - len(order)
    title = f"{image_id}: {len(answers.pairs)} pairs" + (f", {left} not drawn" if left else "")
    with replacing(config.out) as temporary:
        drawn = draw_pairs(image, title, views)
        drawn.save(temporary, format=KINDS[config.out.suffix.lower()])
    for line in _lines(title, views):
        say(line)


def find_image(cache: TeacherCache, name: str) -> str:
    """The id that people mean, who may give a path.

    Raises:
        InputError: the cache holds no answers about it.
    """
    for image_id in (name, Path(name).name):
        if image_id in cache:
            return image_id
        if image_id in cache.failed:
            raise InputError(
                f"{cache.path}: {image_id}: could not be read when the cache was built:"
                f" {cache.failed[image_id]}"
            )
    near = difflib.get_close_matches(Path(name).name, cache.image_ids, n=3, cutoff=0)
    such = f", such as {', '.join(near)}" if near else ""
    raise InputError(f"{cache.path}: expected one of {len(cache)} images{such}, found {name}")


def choose_pairs(answers: ImageAnswers, most: int) -> np.ndarray:
    """Rows of the pairs to draw: the annotated ones first, then by falling detector scores."""
    pairs = answers.pairs
    surest = -(pairs.human_scores * pairs.object_scores)
    return np.lexsort((surest, pairs.sources))[:most]


def view_pair(
    row: int, annotation: Annotation, answers: ImageAnswers, dataset: Dataset, top: int
) -> PairView:
    """One pair as it is drawn."""
    vocabulary, pairs = dataset.vocabulary, answers.pairs
    probabilities = answers.probabilities[row]
    annotated = bool(pairs.sources[row] == ANNOTATED)
    said = np.zeros(vocabulary.num_verbs, dtype=bool)
    thing = vocabulary.objects[pairs.object_labels[row]].replace("_", " ")
    if annotated:
        # Annotated pairs come first in a cache, in the order of the annotation.
        said = pair_labels(annotation, vocabulary)[row]
        labels = _names(vocabulary.verbs[verb] for verb in np.flatnonzero(said))
        title = f"{thing}, annotated: {labels}"
    else:
        scores = f"person {pairs.human_scores[row]:.2f}, {thing} {pairs.object_scores[row]:.2f}"
        title = f"{thing}, proposed ({scores})"
    best = np.argsort(-probabilities, kind="stable")[:top]
    return PairView(
        human_box=pairs.human_boxes[row],
        object_box=pairs.object_boxes[row],
        region=answers.region_boxes[answers.regions[row]],
        title=title,
        annotated=annotated,
        actions=tuple(
            (_names([vocabulary.verbs[verb]]), float(probabilities[verb]), bool(said[verb]))
            for verb in best.tolist()
            if probabilities[verb] > 0
        ),
    )


def _names(verbs: Iterable[str]) -> str:
    return ", ".join(verbs).replace("_", " ")


def _lines(title: str, views: list[PairView]) -> list[str]:
    lines = [title]
    for number, view in enumerate(views, 1):
        told = ", ".join(f"{name} {probability:.2f}" for name, probability, _ in view.actions)
        lines.append(f"{number:>3}  {view.title}; {told or 'no action goes with it'}")
    return lines
