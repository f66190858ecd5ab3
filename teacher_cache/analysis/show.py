"""Draws one image with its pairs, union regions and the teacher's most probable actions."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from evaluation.report.charts.figure import require_packages
from pipeline.datasets.dataset import open_dataset
from pipeline.datasets.size_check import check_image_sizes
from pipeline.images import read_image
from pipeline.types import Annotation
from pipeline.utils.errors import InputError
from pipeline.utils.files import atomic_write, refuse_existing
from pipeline.utils.logging import get_logger
from pipeline.vocabulary import Vocabulary
from teacher_cache.detectors.pairing import pair_labels
from teacher_cache.reader.cache import TeacherCache, open_cache
from teacher_cache.reader.format import ANNOTATED, TeacherOutputs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = get_logger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
# The palette of Okabe and Ito: people, objects, and the pairs in turn.
PERSON_COLOUR, OBJECT_COLOUR = "#56b4e9", "#e69f00"
PAIR_COLOURS = ("#009e73", "#d55e00", "#cc79a7", "#0072b2", "#f0e442", "#5a5a5a")
# Bounds of the drawn image's long side in pixels, and pixels per inch.
MIN_LONG_SIDE, MAX_LONG_SIDE, DPI = 900, 1600, 100
# Of the list, in inches: height of a line, width of a letter and of a bar, space beside a bar.
LINE_HEIGHT, LETTER_WIDTH, BAR_WIDTH, BAR_SPACE = 0.26, 0.095, 1.2, 0.8


@dataclass(frozen=True, eq=False)
class PairView:
    """A pair to draw.

    Attributes:
        human_box, object_box, region: (4,) xyxy boxes in pixels of the image; the region is what
            the teacher's image encoder was given.
        title: object, source and labels or scores, as text.
        annotated: whether the pair is annotated; otherwise it was proposed by a detector.
        actions: name, probability, and whether it is an annotated label; most probable first.
    """

    human_box: np.ndarray
    object_box: np.ndarray
    region: np.ndarray
    title: str
    annotated: bool
    actions: tuple[tuple[str, float, bool], ...]


def show_image(
    cache: Path,
    image: str,
    dataset: Path,
    out: Path,
    top: int = 3,
    pairs: int = 8,
    overwrite: bool = False,
) -> None:
    """Draws an image with its pairs, and prints the pairs.

    Args:
        cache: the cache folder.
        image: id or path of the image.
        dataset: the dataset folder that the cache was built from.
        out: image file to write; its suffix decides the format.
        top: number of actions listed per pair.
        pairs: maximum number of pairs: annotated ones first, then by detector scores.
        overwrite: whether an existing file may be replaced.

    Raises:
        InputError: the input is bad, the cache lacks the image or was built from another dataset,
            the file exists, or matplotlib is not installed.
    """
    if out.suffix.lower() not in IMAGE_SUFFIXES:
        raise InputError(f"{out}: expected a name that ends in {', '.join(IMAGE_SUFFIXES)}")
    refuse_existing(out, overwrite)
    require_packages("a drawing", "matplotlib")
    teacher = open_cache(cache)
    image_id = find_image(teacher, image)
    data = open_dataset(dataset)
    part = str(teacher.manifest["parts"].get("part"))
    loaded = data.load(part).limited(teacher.limit)
    teacher.check(data.vocabulary, loaded.digest, part)
    annotation = next(each for each in loaded.annotations if each.image_id == image_id)
    sizes = check_image_sizes(data, replace(loaded, annotations=(annotation,)))
    sizes.raise_errors()
    for line in sizes.warnings():
        logger.warning(line)
    outputs = teacher[image_id]
    order = select_pairs(outputs, pairs).tolist()
    views = [make_pair_view(row, annotation, outputs, data.vocabulary, top) for row in order]
    num_hidden = len(outputs.pairs) - len(order)
    title = f"{image_id}: {len(outputs.pairs)} pairs"
    if num_hidden:
        title += f", {num_hidden} not drawn"
    figure = draw_pairs(read_image(data.part(part).images / image_id), title, views)
    with atomic_write(out) as temporary:
        figure.savefig(temporary, format=out.suffix.lower().removeprefix("."))
    print(title)
    for number, view in enumerate(views, 1):
        actions = ", ".join(f"{name} {probability:.2f}" for name, probability, _ in view.actions)
        print(f"{number:>3}  {view.title}; {actions or 'no possible action'}")


def find_image(cache: TeacherCache, name: str) -> str:
    """The image id of a name that may also be a path.

    Raises:
        InputError: the cache contains no outputs of the image.
    """
    for image_id in (name, Path(name).name):
        if image_id in cache:
            return image_id
        if image_id in cache.failed:
            raise InputError(
                f"{cache.path}: {image_id}: could not be read when the cache was built:"
                f" {cache.failed[image_id]}"
            )
    matches = difflib.get_close_matches(Path(name).name, cache.image_ids, n=3, cutoff=0)
    examples = f", such as {', '.join(matches)}" if matches else ""
    raise InputError(f"{cache.path}: expected one of {len(cache)} images{examples}, found {name}")


def select_pairs(outputs: TeacherOutputs, max_pairs: int) -> np.ndarray:
    """Rows of the pairs to draw: annotated ones first, then by descending detector scores."""
    pairs = outputs.pairs
    scores = pairs.human_scores * pairs.object_scores
    return np.lexsort((-scores, pairs.sources))[:max_pairs]


def make_pair_view(
    row: int, annotation: Annotation, outputs: TeacherOutputs, vocabulary: Vocabulary, top: int
) -> PairView:
    """The title, boxes and `top` most probable actions of the pair in a row of `outputs`."""
    pairs = outputs.pairs
    probabilities = outputs.probabilities[row]
    annotated = bool(pairs.sources[row] == ANNOTATED)
    labels = np.zeros(vocabulary.num_verbs, dtype=bool)
    name = vocabulary.objects[pairs.object_labels[row]].replace("_", " ")
    if annotated:
        # Annotated pairs come first in a cache, in the order of the annotation.
        labels = pair_labels(annotation, vocabulary)[row]
        verbs = _join_names(vocabulary.verbs[verb] for verb in np.flatnonzero(labels))
        title = f"{name}, annotated: {verbs}"
    else:
        scores = f"person {pairs.human_scores[row]:.2f}, {name} {pairs.object_scores[row]:.2f}"
        title = f"{name}, proposed ({scores})"
    best = np.argsort(-probabilities, kind="stable")[:top]
    return PairView(
        human_box=pairs.human_boxes[row],
        object_box=pairs.object_boxes[row],
        region=outputs.region_boxes[outputs.region_indices[row]],
        title=title,
        annotated=annotated,
        actions=tuple(
            (_join_names([vocabulary.verbs[verb]]), float(probabilities[verb]), bool(labels[verb]))
            for verb in best.tolist()
            if probabilities[verb] > 0
        ),
    )


def _join_names(verbs: Iterable[str]) -> str:
    return ", ".join(verbs).replace("_", " ")


def draw_pairs(image: Image.Image, title: str, pairs: Sequence[PairView]) -> Figure:
    """Draws pairs on an image and lists them on its right.

    Args:
        image: the image; it is resized to a long side of 900 to 1,600 pixels.
        title: title of the list.
        pairs: the pairs, in the order of their numbers.
    """
    from matplotlib.figure import Figure

    scale = min(max(*image.size, MIN_LONG_SIDE), MAX_LONG_SIDE) / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    width, height = size[0] / DPI, size[1] / DPI
    texts = [title, *(f"  {pair.title}" for pair in pairs)]
    names = [name for pair in pairs for name, _, _ in pair.actions]
    name_width = LETTER_WIDTH * (3 + max(map(len, names), default=0))
    list_width = max(LETTER_WIDTH * (3 + max(map(len, texts))), name_width + BAR_WIDTH + BAR_SPACE)
    list_height = LINE_HEIGHT * (2 + sum(1.4 + len(pair.actions) for pair in pairs))
    whole = (width + list_width, max(height, list_height))
    figure = Figure(whole, dpi=DPI)
    axis = figure.add_axes((0, 1 - height / whole[1], width / whole[0], height / whole[1]))
    axis.imshow(image.convert("RGB").resize(size, Image.Resampling.LANCZOS), aspect="auto")
    axis.set_axis_off()
    _draw_boxes(axis, pairs, scale, size)
    axis = figure.add_axes((width / whole[0], 0, list_width / whole[0], 1))
    axis.set(xlim=(0, list_width), ylim=(whole[1], 0))
    axis.set_axis_off()
    axis.text(LETTER_WIDTH, LINE_HEIGHT, title, va="center")
    y = 2 * LINE_HEIGHT
    for number, pair in enumerate(pairs, 1):
        _draw_number(axis, 1.6 * LETTER_WIDTH, y, number, pair.annotated)
        axis.text(3 * LETTER_WIDTH, y, pair.title, va="center")
        for name, probability, is_label in pair.actions:
            y += LINE_HEIGHT
            axis.text(3 * LETTER_WIDTH, y, name, va="center")
            for share, colour in ((1.0, "#e2e5e9"), (probability, _pair_colour(number))):
                axis.barh(y, share * BAR_WIDTH, 0.6 * LINE_HEIGHT, name_width, color=colour)
            text = f"{probability:.2f}" + (" ✓" if is_label else "")
            axis.text(name_width + BAR_WIDTH + LETTER_WIDTH, y, text, va="center")
        y += 1.4 * LINE_HEIGHT
    return figure


def _draw_boxes(axis: Axes, pairs: Sequence[PairView], scale: float, size: tuple[int, int]) -> None:
    """Draws boxes of people and objects, links between them, and numbered regions.

    Args:
        axis: shows the image.
        pairs: the pairs; outlines of annotated pairs' regions are solid, others dashed.
        scale: pixels of the drawing per pixel of the boxes.
        size: width and height of the drawing.
    """
    from matplotlib.patches import Rectangle

    def to_drawing(box: np.ndarray) -> np.ndarray:
        corners = np.nan_to_num(np.asarray(box, np.float64), posinf=1e9, neginf=-1e9) * scale
        return np.clip(corners, 0, [*size, *size])

    def outline(box: np.ndarray, colour: str, style: str = "-") -> None:
        x1, y1, x2, y2 = box
        axis.add_patch(
            Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=colour, lw=2.5, ls=style)
        )

    numbered: list[np.ndarray] = []
    for number, pair in enumerate(pairs, 1):
        human, target, region = map(to_drawing, (pair.human_box, pair.object_box, pair.region))
        outline(target, OBJECT_COLOUR)
        outline(human, PERSON_COLOUR)
        outline(region, _pair_colour(number), "-" if pair.annotated else "--")
        centres = np.array([(box[:2] + box[2:]) / 2 for box in (human, target)])
        axis.plot(*centres.T, color="white", lw=2, marker="o")
        # Numbers of regions with about the same corner stand side by side.
        shift = 24 * sum(np.abs(region[:2] - corner).max() < 24 for corner in numbered)
        numbered.append(region[:2])
        _draw_number(axis, region[0] + shift, region[1], number, pair.annotated)


def _draw_number(axis: Axes, x: float, y: float, number: int, annotated: bool) -> None:
    """Draws a pair's number, in a square for annotated pairs and in a disc for proposed ones."""
    style = {"boxstyle": "square" if annotated else "circle", "fc": _pair_colour(number), "ec": "w"}
    axis.text(x, y, str(number), ha="center", va="center", fontsize=9, bbox=style)


def _pair_colour(number: int) -> str:
    return PAIR_COLOURS[(number - 1) % len(PAIR_COLOURS)]
