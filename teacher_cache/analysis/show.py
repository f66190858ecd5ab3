"""Draws one image with its pairs and what the teacher says about them."""

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


def show_image(config: ShowConfig) -> None:
    """Draws an image, and tells its pairs.

    Raises:
        InputError: bad input, an image that the cache does not hold, or another dataset.
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
    left = len(outputs.pairs) - len(order)
    title = f"{image_id}: {len(outputs.pairs)} pairs" + (f", {left} not drawn" if left else "")
    with atomic_write(config.out) as temporary:
        drawn = draw_pairs(image, title, views)
        drawn.save(temporary, format=IMAGE_FORMATS[config.out.suffix.lower()])
    for line in _format_lines(title, views):
        print(line)


def find_image(cache: TeacherCache, name: str) -> str:
    """The id that people mean, who may give a path.

    Raises:
        InputError: the cache holds no outputs about it.
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


def select_pairs(outputs: TeacherOutputs, max_pairs: int) -> np.ndarray:
    """Rows of the pairs to draw: the annotated ones first, then by falling detector scores."""
    pairs = outputs.pairs
    surest = -(pairs.human_scores * pairs.object_scores)
    return np.lexsort((surest, pairs.sources))[:max_pairs]


def make_pair_view(
    row: int, annotation: Annotation, outputs: TeacherOutputs, dataset: Dataset, top: int
) -> PairView:
    """One pair as it is drawn."""
    vocabulary, pairs = dataset.vocabulary, outputs.pairs
    probabilities = outputs.probabilities[row]
    annotated = bool(pairs.sources[row] == ANNOTATED)
    said = np.zeros(vocabulary.num_verbs, dtype=bool)
    thing = vocabulary.objects[pairs.object_labels[row]].replace("_", " ")
    if annotated:
        # Annotated pairs come first in a cache, in the order of the annotation.
        said = pair_labels(annotation, vocabulary)[row]
        labels = _join_names(vocabulary.verbs[verb] for verb in np.flatnonzero(said))
        title = f"{thing}, annotated: {labels}"
    else:
        scores = f"person {pairs.human_scores[row]:.2f}, {thing} {pairs.object_scores[row]:.2f}"
        title = f"{thing}, proposed ({scores})"
    best = np.argsort(-probabilities, kind="stable")[:top]
    return PairView(
        human_box=pairs.human_boxes[row],
        object_box=pairs.object_boxes[row],
        region=outputs.region_boxes[outputs.region_indices[row]],
        title=title,
        annotated=annotated,
        actions=tuple(
            (_join_names([vocabulary.verbs[verb]]), float(probabilities[verb]), bool(said[verb]))
            for verb in best.tolist()
            if probabilities[verb] > 0
        ),
    )


def _join_names(verbs: Iterable[str]) -> str:
    return ", ".join(verbs).replace("_", " ")


def _format_lines(title: str, views: list[PairView]) -> list[str]:
    lines = [title]
    for number, view in enumerate(views, 1):
        told = ", ".join(f"{name} {probability:.2f}" for name, probability, _ in view.actions)
        lines.append(f"{number:>3}  {view.title}; {told or 'no action goes with it'}")
    return lines


# Okabe and Ito's colours without those of people and objects.
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
MIN_LONG_SIDE, MAX_LONG_SIDE = 900, 1600
# In letter heights: the list's margins, line height, width of a bar; dashes of an outline.
MARGIN, LINE_HEIGHT, BAR_WIDTH = 1.0, 1.5, 7.0
DASH, GAP = 1.1, 0.7
MAX_SHIFTS = 200


@dataclass(frozen=True, eq=False)
class PairView:
    """One pair to be drawn.

    Attributes:
        human_box, object_box, region: (4,) xyxy, pixels of the picture; the region is what the
            teacher saw.
        title: what it is, for people.
        annotated: whether people annotated it or a detector proposed it.
        actions: names and probabilities, the most probable first, and whether people said so too.
    """

    human_box: np.ndarray
    object_box: np.ndarray
    region: np.ndarray
    title: str
    annotated: bool
    actions: tuple[tuple[str, float, bool], ...]


def draw_pairs(image: Image.Image, title: str, pairs: Sequence[PairView]) -> Image.Image:
    """Draws pairs on a picture and lists them on its right.

    Args:
        image: the picture; its long side becomes 900 to 1,600 pixels.
        title: above the list.
        pairs: in the order of their numbers.

    Returns:
        A new RGB picture.
    """
    long_side = min(max(*image.size, MIN_LONG_SIDE), MAX_LONG_SIDE)
    scale = long_side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    picture = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    canvas = _PairCanvas(size, supersampling=2 if long_side <= MAX_SUPERSAMPLED else 1)
    for objects in {pair.object_box.tobytes(): pair.object_box for pair in pairs}.values():
        canvas.draw_box(canvas.scale_box(objects, scale), OBJECT_COLOUR)
    for person in {pair.human_box.tobytes(): pair.human_box for pair in pairs}.values():
        canvas.draw_box(canvas.scale_box(person, scale), PERSON_COLOUR)
    # The first pairs matter most and lie on top.
    for number, pair in reversed(list(enumerate(pairs, 1))):
        canvas.draw_link(
            canvas.scale_box(pair.human_box, scale), canvas.scale_box(pair.object_box, scale)
        )
        canvas.draw_region(canvas.scale_box(pair.region, scale), number, pair.annotated)
    canvas.draw_numbers()
    overlay = canvas.overlay.resize(size, Image.Resampling.LANCZOS)
    drawn = Image.alpha_composite(picture.convert("RGBA"), overlay).convert("RGB")
    beside = _draw_list(title, pairs, letter=round(long_side / 52))
    sheet = Image.new(
        "RGB", (drawn.width + beside.width, max(drawn.height, beside.height)), BACKGROUND
    )
    sheet.paste(drawn, (0, 0))
    sheet.paste(beside, (drawn.width, 0))
    return sheet


def pair_colour(number: int) -> tuple[int, int, int]:
    """Colour of a pair by its number, from 1 on."""
    return PAIR_COLOURS[(number - 1) % len(PAIR_COLOURS)]


class _PairCanvas(Canvas):
    """Adds regions and their numbers."""

    def __init__(self, size: tuple[int, int], supersampling: int) -> None:
        super().__init__(size, supersampling)
        self._badges: list[tuple[float, float, int, bool]] = []

    def scale_box(self, box: np.ndarray, scale: float) -> np.ndarray:
        """A box of the picture in pixels of the overlay, clipped to it."""
        width, height = self.overlay.size
        corners = np.nan_to_num(np.asarray(box, np.float64), posinf=1e9, neginf=-1e9)
        corners *= scale * self._supersampling
        return np.clip(corners, 0, [width, height, width, height])

    def draw_region(self, box: np.ndarray, number: int, annotated: bool) -> None:
        """An outline around what the teacher saw; its number finds a free corner later."""
        x1, y1, x2, y2 = box
        for ends in (((x1, y1), (x2, y1)), ((x2, y1), (x2, y2)), ((x2, y2), (x1, y2)),
                     ((x1, y2), (x1, y1))):  # fmt: skip
            for start, end in [ends] if annotated else self._dashes(*ends):
                self._draw.line([start, end], fill=(*BLACK, 130), width=self._line_width + 2)
                self._draw.line([start, end], fill=pair_colour(number), width=self._line_width)
        self._badges.append((x1, y1, number, annotated))

    def draw_numbers(self) -> None:
        """Numbers at the regions' upper left corners, shifted along until none hides another."""
        radius = 0.75 * self._em
        taken: list[tuple[float, float]] = []
        right, bottom = self.overlay.width - radius, self.overlay.height - radius
        for x, y, number, annotated in reversed(self._badges):
            x, y = min(max(x, radius), right), min(max(y, radius), bottom)
            # A small picture may have no room for so many numbers; then they cover each other.
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
        steps = np.arange(0, max(length, 1e-9), (DASH + GAP) * self._em) / max(length, 1e-9)
        ends = np.minimum(steps + DASH * self._em / max(length, 1e-9), 1)
        along = last - first
        return [
            (tuple(first + one * along), tuple(first + two * along))
            for one, two in zip(steps, ends, strict=True)
        ]


def draw_badge(
    pen: ImageDraw.ImageDraw,
    middle: tuple[float, float],
    radius: float,
    number: int,
    annotated: bool,
) -> None:
    """A pair's number: in a square when people annotated it, in a disc when it was proposed."""
    x, y = middle
    corners = (x - radius, y - radius, x + radius, y + radius)
    colour = pair_colour(number)
    ink = BLACK if sum(colour) > 400 else WHITE
    shape = pen.rectangle if annotated else pen.ellipse
    shape(corners, fill=colour, outline=WHITE, width=max(1, round(radius / 8)))
    font = load_font(max(8, round(1.15 * radius)))
    pen.text((x, y), str(number), fill=ink, font=font, anchor="mm")


def _draw_list(title: str, pairs: Sequence[PairView], letter: int) -> Image.Image:
    """Titles and actions of all pairs, one below the other."""
    font, line, margin = load_font(letter), LINE_HEIGHT * letter, MARGIN * letter
    names = [name for pair in pairs for name, _, _ in pair.actions]
    name_width = max([font.getlength(name) for name in names], default=0)
    body = 2.2 * letter + name_width + (BAR_WIDTH + 5.5) * letter
    heads = [font.getlength(title)]
    heads += [2.2 * letter + font.getlength(pair.title) for pair in pairs]
    width = round(max(body, *heads) + 2 * margin)
    lines = 1.4 + sum(1.4 + len(pair.actions) for pair in pairs)
    sheet = Image.new("RGB", (width, round(lines * line + 2 * margin)), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    pen.text((margin, margin + line / 2), title, fill=TEXT, font=font, anchor="lm")
    y = margin + 1.4 * line
    for number, pair in enumerate(pairs, 1):
        middle = y + line / 2
        draw_badge(pen, (margin + 0.8 * letter, middle), 0.75 * letter, number, pair.annotated)
        left = margin + 2.2 * letter
        pen.text((left, middle), pair.title, fill=TEXT, font=font, anchor="lm")
        y += line
        for name, probability, said in pair.actions:
            middle = y + line / 2
            pen.text((left, middle), name, fill=TEXT, font=font, anchor="lm")
            start = left + name_width + letter
            bar = (start, middle - 0.3 * letter, start + BAR_WIDTH * letter, middle + 0.3 * letter)
            pen.rectangle(bar, fill=BAR_BACKGROUND)
            full = start + max(probability, 0.0) * BAR_WIDTH * letter
            if full > start + 1:
                pen.rectangle((*bar[:2], full, bar[3]), fill=pair_colour(number))
            text = f"{probability:.2f}" + (" ✓" if said else "")
            place = (bar[2] + 0.6 * letter, middle)
            pen.text(place, text, fill=TEXT if said else MUTED_TEXT, font=font, anchor="lm")
            y += line
        y += 0.4 * line
    return sheet
