"""Draws one image with its pairs, union regions and the teacher's most probable actions."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from evaluation.drawing.canvas import (
    BLACK,
    MAX_SUPERSAMPLED,
    OBJECT_COLOUR,
    PERSON_COLOUR,
    WHITE,
    Canvas,
    load_font,
)
from pipeline.datasets.dataset import Dataset, open_dataset
from pipeline.datasets.size_check import check_image_sizes
from pipeline.images import read_image
from pipeline.types import Annotation
from pipeline.utils.errors import InputError
from pipeline.utils.files import atomic_write, refuse_existing
from pipeline.utils.logging import get_logger
from teacher_cache.detectors.pairing import pair_labels
from teacher_cache.reader.cache import TeacherCache, open_cache
from teacher_cache.reader.format import ANNOTATED, TeacherOutputs

logger = get_logger(__name__)

IMAGE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


@dataclass(frozen=True)
class ShowConfig:
    """Which image to draw, and how.

    Attributes:
        cache: the cache folder.
        image: id or path of the image.
        dataset: the dataset folder that the cache was built from.
        out: image file to write; its suffix decides the format.
        top: number of actions listed per pair.
        pairs: maximum number of pairs: annotated ones first, then by detector scores.
        overwrite: whether an existing file may be replaced.
    """

    cache: Path
    image: str
    dataset: Path
    out: Path
    top: int = 3
    pairs: int = 8
    overwrite: bool = False


def show_image(config: ShowConfig) -> None:
    """Draws an image with its pairs, and prints the pairs.

    Raises:
        InputError: the input is bad, the cache lacks the image or was built from another dataset,
            or the file exists.
    """
    if config.out.suffix.lower() not in IMAGE_FORMATS:
        raise InputError(f"{config.out}: expected a name that ends in {', '.join(IMAGE_FORMATS)}")
    refuse_existing(config.out, config.overwrite)
    cache = open_cache(config.cache)
    image_id = find_image(cache, config.image)
    dataset = open_dataset(config.dataset)
    part = str(cache.manifest["parts"].get("part"))
    loaded = dataset.load(part)
    cache.check(dataset.vocabulary, loaded.digest, part)
    annotation = next(each for each in loaded.annotations if each.image_id == image_id)
    sizes = check_image_sizes(dataset, replace(loaded, annotations=(annotation,)))
    sizes.raise_errors()
    for line in sizes.warnings():
        logger.warning(line)
    image = read_image(dataset.part(part).images / image_id)
    outputs = cache[image_id]
    order = select_pairs(outputs, config.pairs)
    views = [
        make_pair_view(row, annotation, outputs, dataset, config.top) for row in order.tolist()
    ]
    num_hidden = len(outputs.pairs) - len(order)
    title = f"{image_id}: {len(outputs.pairs)} pairs"
    if num_hidden:
        title += f", {num_hidden} not drawn"
    with atomic_write(config.out) as temporary:
        drawn = draw_pairs(image, title, views)
        drawn.save(temporary, format=IMAGE_FORMATS[config.out.suffix.lower()])
    for line in _format_lines(title, views):
        print(line)


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
    row: int, annotation: Annotation, outputs: TeacherOutputs, dataset: Dataset, top: int
) -> PairView:
    """The title, boxes and `top` most probable actions of the pair in a row of `outputs`."""
    vocabulary, pairs = dataset.vocabulary, outputs.pairs
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


def _format_lines(title: str, views: list[PairView]) -> list[str]:
    lines = [title]
    for number, view in enumerate(views, 1):
        actions = ", ".join(f"{name} {probability:.2f}" for name, probability, _ in view.actions)
        lines.append(f"{number:>3}  {view.title}; {actions or 'no possible action'}")
    return lines


# The palette of Okabe and Ito, without the colours of people and objects.
PAIR_COLOURS = (
    (0, 158, 115),
    (213, 94, 0),
    (204, 121, 167),
    (0, 114, 178),
    (240, 228, 66),
    (90, 90, 90),
)
BACKGROUND, TEXT, MUTED_TEXT, BAR_BACKGROUND = (
    (250, 250, 248),
    (24, 28, 36),
    (107, 114, 128),
    (226, 229, 233),
)
# Bounds of the drawn image's long side in pixels.
MIN_LONG_SIDE, MAX_LONG_SIDE = 900, 1600
# Margin, line height and bar width of the list, and dashes of an outline, in letter heights.
MARGIN, LINE_HEIGHT, BAR_WIDTH = 1.0, 1.5, 7.0
DASH, GAP = 1.1, 0.7
# Positions tried for a pair's number.
MAX_SHIFTS = 200


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


def draw_pairs(image: Image.Image, title: str, pairs: Sequence[PairView]) -> Image.Image:
    """Draws pairs on an image and lists them on its right.

    Args:
        image: the image; it is resized to a long side of 900 to 1,600 pixels.
        title: title of the list.
        pairs: the pairs, in the order of their numbers.

    Returns:
        A new RGB image.
    """
    long_side = min(max(*image.size, MIN_LONG_SIDE), MAX_LONG_SIDE)
    scale = long_side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    resized = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    canvas = _PairCanvas(size, supersampling=2 if long_side <= MAX_SUPERSAMPLED else 1)
    # A box that several pairs share is drawn once.
    for box in {pair.object_box.tobytes(): pair.object_box for pair in pairs}.values():
        canvas.draw_box(canvas.scale_box(box, scale), OBJECT_COLOUR)
    for box in {pair.human_box.tobytes(): pair.human_box for pair in pairs}.values():
        canvas.draw_box(canvas.scale_box(box, scale), PERSON_COLOUR)
    # In reverse order, so that the first pairs are drawn on top.
    for number, pair in reversed(list(enumerate(pairs, 1))):
        canvas.draw_link(
            canvas.scale_box(pair.human_box, scale), canvas.scale_box(pair.object_box, scale)
        )
        canvas.draw_region(canvas.scale_box(pair.region, scale), number, pair.annotated)
    canvas.draw_numbers()
    overlay = canvas.overlay.resize(size, Image.Resampling.LANCZOS)
    annotated = Image.alpha_composite(resized.convert("RGBA"), overlay).convert("RGB")
    pair_list = _draw_list(title, pairs, letter=round(long_side / 52))
    height = max(annotated.height, pair_list.height)
    drawing = Image.new("RGB", (annotated.width + pair_list.width, height), BACKGROUND)
    drawing.paste(annotated, (0, 0))
    drawing.paste(pair_list, (annotated.width, 0))
    return drawing


def pair_colour(number: int) -> tuple[int, int, int]:
    """RGB colour of the pair with a number, starting at 1."""
    return PAIR_COLOURS[(number - 1) % len(PAIR_COLOURS)]


class _PairCanvas(Canvas):
    """A canvas that also draws union regions and the pairs' numbers."""

    def __init__(self, size: tuple[int, int], supersampling: int) -> None:
        super().__init__(size, supersampling)
        self._badges: list[tuple[float, float, int, bool]] = []

    def scale_box(self, box: np.ndarray, scale: float) -> np.ndarray:
        """(4,) xyxy box of the image in pixels of the overlay, clipped to it."""
        width, height = self.overlay.size
        corners = np.nan_to_num(np.asarray(box, np.float64), posinf=1e9, neginf=-1e9)
        corners *= scale * self._supersampling
        return np.clip(corners, 0, [width, height, width, height])

    def draw_region(self, box: np.ndarray, number: int, annotated: bool) -> None:
        """Draws the outline of a region; `draw_numbers` places its number later."""
        x1, y1, x2, y2 = box
        for ends in (((x1, y1), (x2, y1)), ((x2, y1), (x2, y2)), ((x2, y2), (x1, y2)),
                     ((x1, y2), (x1, y1))):  # fmt: skip
            for start, end in [ends] if annotated else self._dashes(*ends):
                self._draw.line([start, end], fill=(*BLACK, 130), width=self._line_width + 2)
                self._draw.line([start, end], fill=pair_colour(number), width=self._line_width)
        self._badges.append((x1, y1, number, annotated))

    def draw_numbers(self) -> None:
        """Draws numbers at the regions' upper left corners, shifted until none overlaps another."""
        radius = 0.75 * self._em
        taken: list[tuple[float, float]] = []
        right, bottom = self.overlay.width - radius, self.overlay.height - radius
        for x, y, number, annotated in reversed(self._badges):
            x, y = min(max(x, radius), right), min(max(y, radius), bottom)
            # A small image may have too little space; then some numbers overlap.
            for _ in range(MAX_SHIFTS):
                if all(max(abs(x - a), abs(y - b)) >= 2 * radius for a, b in taken):
                    break
                x, y = (x + 2 * radius, y) if x + 2 * radius <= right else (radius, y + 2 * radius)
                y = y if y <= bottom else radius
            taken.append((x, y))
            draw_badge(self._draw, (x, y), radius, number, annotated)

    def _dashes(
        self, start: tuple[float, float], end: tuple[float, float]
    ) -> list[tuple[tuple[float, float], tuple[float, float]]]:
        first, last = np.array(start), np.array(end)
        length = float(np.hypot(*(last - first)))
        # Dashes as fractions of the line; the minimum length avoids a division by zero.
        length = max(length, 1e-9)
        starts = np.arange(0, length, (DASH + GAP) * self._em) / length
        ends = np.minimum(starts + DASH * self._em / length, 1)
        return [
            (tuple(first + dash_start * (last - first)), tuple(first + dash_end * (last - first)))
            for dash_start, dash_end in zip(starts, ends, strict=True)
        ]


def draw_badge(
    draw: ImageDraw.ImageDraw,
    centre: tuple[float, float],
    radius: float,
    number: int,
    annotated: bool,
) -> None:
    """Draws a pair's number, in a square for annotated pairs and in a disc for proposed ones."""
    x, y = centre
    corners = (x - radius, y - radius, x + radius, y + radius)
    colour = pair_colour(number)
    text_colour = BLACK if sum(colour) > 400 else WHITE
    draw_shape = draw.rectangle if annotated else draw.ellipse
    draw_shape(corners, fill=colour, outline=WHITE, width=max(1, round(radius / 8)))
    font = load_font(max(8, round(1.15 * radius)))
    draw.text((x, y), str(number), fill=text_colour, font=font, anchor="mm")


def _draw_list(title: str, pairs: Sequence[PairView], letter: int) -> Image.Image:
    """Draws the titles and actions of all pairs, one below the other.

    Args:
        title: title of the list.
        pairs: the pairs, in the order of their numbers.
        letter: font size in pixels, the unit of all sizes.
    """
    font, line, margin = load_font(letter), LINE_HEIGHT * letter, MARGIN * letter
    names = [name for pair in pairs for name, _, _ in pair.actions]
    name_width = max([font.getlength(name) for name in names], default=0)
    action_width = 2.2 * letter + name_width + (BAR_WIDTH + 5.5) * letter
    title_widths = [font.getlength(title)]
    title_widths += [2.2 * letter + font.getlength(pair.title) for pair in pairs]
    width = round(max(action_width, *title_widths) + 2 * margin)
    num_lines = 1.4 + sum(1.4 + len(pair.actions) for pair in pairs)
    image = Image.new("RGB", (width, round(num_lines * line + 2 * margin)), BACKGROUND)
    draw = ImageDraw.Draw(image)
    draw.text((margin, margin + line / 2), title, fill=TEXT, font=font, anchor="lm")
    y = margin + 1.4 * line
    left = margin + 2.2 * letter
    bar_left = left + name_width + letter
    bar_right = bar_left + BAR_WIDTH * letter
    for number, pair in enumerate(pairs, 1):
        middle = y + line / 2
        draw_badge(draw, (margin + 0.8 * letter, middle), 0.75 * letter, number, pair.annotated)
        draw.text((left, middle), pair.title, fill=TEXT, font=font, anchor="lm")
        y += line
        for name, probability, is_label in pair.actions:
            middle = y + line / 2
            top, bottom = middle - 0.3 * letter, middle + 0.3 * letter
            draw.text((left, middle), name, fill=TEXT, font=font, anchor="lm")
            draw.rectangle((bar_left, top, bar_right, bottom), fill=BAR_BACKGROUND)
            bar_end = bar_left + max(probability, 0.0) * BAR_WIDTH * letter
            if bar_end > bar_left + 1:
                draw.rectangle((bar_left, top, bar_end, bottom), fill=pair_colour(number))
            text = f"{probability:.2f}" + (" ✓" if is_label else "")
            colour = TEXT if is_label else MUTED_TEXT
            position = (bar_right + 0.6 * letter, middle)
            draw.text(position, text, fill=colour, font=font, anchor="lm")
            y += line
        y += 0.4 * line
    return image
