"""Draws one image with its pairs, union regions and the teacher's most probable actions."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from evaluation.drawing.canvas import (
    MIN_FONT_SIZE,
    PAIR_COLOURS,
    Colour,
    Label,
    LabelLine,
    add_margin,
    draw_labelled_pairs,
    font_size,
)
from evaluation.drawing.interactions import OBJECT, PERSON, REGION, add_legend
from evaluation.report.charts.figure import require_packages
from pipeline.boxes import clip_boxes
from pipeline.datasets.dataset import open_dataset
from pipeline.datasets.size_check import check_image_sizes
from pipeline.images import read_image
from pipeline.types import Annotation
from pipeline.utils.errors import InputError
from pipeline.utils.files import atomic_write, refuse_existing
from pipeline.utils.logging import get_logger
from pipeline.utils.text import count_noun
from pipeline.vocabulary import Vocabulary
from teacher_cache.detectors.pairing import pair_labels
from teacher_cache.reader.cache import TeacherCache, open_cache
from teacher_cache.reader.format import ANNOTATED, TeacherOutputs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = get_logger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
# Frame and background of bars, as some of the pairs' colours are light.
FRAME_COLOUR, TRACK_COLOUR = "#5a5a5a", "#d0d4da"
# Bounds of the drawn image's long side in pixels, and pixels per inch.
MIN_LONG_SIDE, MAX_LONG_SIDE, DPI = 900, 1600, 100
# Narrower images get a margin, in which numbers have room.
MIN_SHORT_SIDE = 64
# Of the list, in inches: height of a line, width of a letter and of a bar, space beside a bar.
LINE_HEIGHT, LETTER_WIDTH, BAR_WIDTH, BAR_SPACE = 0.26, 0.095, 1.2, 0.8


@dataclass(frozen=True, eq=False)
class PairView:
    """A pair to draw.

    Attributes:
        human_box, object_box, region: (4,) xyxy boxes in pixels of the image; the region is what
            the teacher's image encoder was given.
        title: object, source and labels or scores, as text.
        actions: name, probability, and whether it is an annotated label; most probable first.
    """

    human_box: np.ndarray
    object_box: np.ndarray
    region: np.ndarray
    title: str
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
    title = f"{image_id}: {count_noun(len(outputs.pairs), 'pairs')}"
    if num_hidden:
        title += f", {num_hidden} not drawn"
    import matplotlib

    # Names with two dollar signs are no formulas.
    with matplotlib.rc_context({"text.parse_math": False}):
        figure = draw_pairs(read_image(data.part(part).images / image_id), title, views)
    with atomic_write(out) as temporary:
        figure.savefig(temporary, format=out.suffix.lower().removeprefix("."))
    print(title)
    for number, view in enumerate(views, 1):
        actions = ", ".join(f"{name} {probability:.2f}" for name, probability, _ in view.actions)
        print(f"{number:>3}  {view.title}; {actions or 'no action above 0'}")


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
    resized = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    drawn, offset = add_margin(resized, (MIN_SHORT_SIDE, MIN_SHORT_SIDE))
    drawn = _draw_boxes(drawn, pairs, scale, offset)
    width, height = drawn.width / DPI, drawn.height / DPI
    texts = [title, *(f"  {pair.title}" for pair in pairs)]
    names = [name for pair in pairs for name, _, _ in pair.actions]
    name_width = LETTER_WIDTH * (4 + max(map(len, names), default=0))
    list_width = max(LETTER_WIDTH * (4 + max(map(len, texts))), name_width + BAR_WIDTH + BAR_SPACE)
    list_height = LINE_HEIGHT * (2 + sum(1.4 + len(pair.actions) for pair in pairs))
    whole = (width + list_width, max(height, list_height))
    figure = Figure(whole, dpi=DPI)
    axis = figure.add_axes((0, 1 - height / whole[1], width / whole[0], height / whole[1]))
    axis.imshow(drawn, aspect="auto")
    axis.set_axis_off()
    axis = figure.add_axes((width / whole[0], 0, list_width / whole[0], 1))
    axis.set(xlim=(0, list_width), ylim=(whole[1], 0))
    axis.set_axis_off()
    axis.text(LETTER_WIDTH, LINE_HEIGHT, title, va="center")
    y = 2 * LINE_HEIGHT
    for number, pair in enumerate(pairs, 1):
        colour = "#{:02x}{:02x}{:02x}".format(*_pair_colour(number))
        style = {"boxstyle": "square", "fc": colour, "ec": FRAME_COLOUR}
        axis.text(2 * LETTER_WIDTH, y, str(number), ha="center", va="center", bbox=style)
        axis.text(4 * LETTER_WIDTH, y, pair.title, va="center")
        for name, probability, is_label in pair.actions:
            y += LINE_HEIGHT
            axis.text(4 * LETTER_WIDTH, y, name, va="center")
            for share, fill in ((1.0, TRACK_COLOUR), (probability, colour)):
                lengths = (y, share * BAR_WIDTH, 0.6 * LINE_HEIGHT, name_width)
                axis.barh(*lengths, facecolor=fill, edgecolor=FRAME_COLOUR, linewidth=0.8)
            text = f"{probability:.2f}" + (" ✓" if is_label else "")
            axis.text(name_width + BAR_WIDTH + LETTER_WIDTH, y, text, va="center")
        y += 1.4 * LINE_HEIGHT
    return figure


def _draw_boxes(
    image: Image.Image, pairs: Sequence[PairView], scale: float, offset: np.ndarray
) -> Image.Image:
    """Draws boxes, links, regions and numbers of pairs, and a legend below.

    Args:
        image: of the drawing.
        pairs: the pairs.
        scale, offset: pixels of the drawing per pixel of the boxes, and what is added then.
    """
    if not pairs:
        return image
    boxes = np.array([[pair.human_box, pair.object_box, pair.region] for pair in pairs], np.float64)
    boxes = np.nan_to_num(boxes, posinf=1e9, neginf=-1e9) * scale + offset
    humans, targets, regions = (clip_boxes(boxes[:, role], image.size) for role in range(3))
    labels = [
        Label([LabelLine(str(number))], np.stack([human, target]), _pair_colour(number))
        for number, (human, target) in enumerate(zip(humans, targets, strict=True), 1)
    ]
    obstacles = np.vstack([humans, targets])
    em = max(MIN_FONT_SIZE, round(0.75 * font_size(image.size)))
    drawn = draw_labelled_pairs(image, labels, obstacles, humans, em, regions=regions)
    return add_legend(drawn, (PERSON, OBJECT, REGION))


def _pair_colour(number: int) -> Colour:
    return PAIR_COLOURS[(number - 1) % len(PAIR_COLOURS)]
