"""A canvas of boxes, links and labels over an image.

Line widths, text and distances are fractions of the image's size, so that drawings of all sizes
look the same.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from evaluation.drawing.label_placement import (
    BOX_COST,
    FACE_COST,
    OBJECT_COST,
    face_boxes,
    place_labels,
)
from pipeline.utils.text import count_noun

Colour = tuple[int, int, int]
# Colours of the pairs, in turn. Neighbours in this list differ the most.
PAIR_COLOURS: tuple[Colour, ...] = (
    (86, 180, 233),
    (255, 150, 30),
    (60, 220, 130),
    (255, 120, 200),
    (255, 255, 255),
    (170, 130, 255),
    (255, 80, 70),
    (40, 225, 225),
    (180, 220, 40),
    (205, 150, 105),
    (80, 120, 255),
    (230, 50, 230),
    (255, 190, 170),
    (50, 160, 80),
    (170, 180, 200),
)
LABEL_COLOUR, UNSEEN_COLOUR, MARGIN_COLOUR = (24, 28, 36), (240, 228, 66), (78, 84, 94)
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
CORRECT_COLOUR, WRONG_COLOUR = (0, 158, 115), (213, 94, 0)
# Dark rim of lines, so that they are visible on any background.
RIM = (*BLACK, 130)
# Largest font size as fractions of the image's long and short side; it shrinks to half of it for
# many labels. In pixels, it is never smaller than the minimum.
LONG_SIDE_SHARE, SHORT_SIDE_SHARE = 1 / 36, 1 / 20
MIN_FONT_SIZE = 11
# Fraction of the image that all labels may cover together: the font shrinks until they do, and
# labels are left out if the smallest font is not enough.
LABEL_SHARE, MAX_LABEL_SHARE = 0.2, 0.3
# In font sizes: height of a line, width of the stripe in the pair's colour, space beside the text.
LINE_HEIGHT, STRIPE, PADDING = 1.42, 0.4, 0.35
# In line widths: length of the dashes of boxes that belong to several pairs.
DASH = 5
# Drawn larger by this factor and downscaled, for smooth edges; images with a longer side than the
# maximum are sharp enough without.
SUPERSAMPLING, MAX_SUPERSAMPLED = 2, 1280


@dataclass(frozen=True)
class LabelLine:
    """One line of a label: an action, whether it is unseen, and whether it is correct."""

    text: str
    unseen: bool = False
    correct: bool | None = None


@dataclass(frozen=True, eq=False)
class Label:
    """The label of a pair.

    Attributes:
        lines: its actions.
        boxes: (1 or 2, 4) xyxy, the boxes of the pair, the person first. It is placed beside one.
        colour: the pair's colour.
    """

    lines: Sequence[LabelLine]
    boxes: np.ndarray
    colour: Colour


class Canvas:
    """A transparent overlay, whose line widths depend on its size.

    Args:
        size: width and height of the image, in pixels.

    Attributes:
        overlay: RGBA image.
        supersampling: factor by which the overlay is larger than the image. Everything that is
            drawn is in pixels of the overlay.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.supersampling = supersampling = choose_supersampling(size)
        self.overlay = Image.new(
            "RGBA", (size[0] * supersampling, size[1] * supersampling), (0, 0, 0, 0)
        )
        self._draw = ImageDraw.Draw(self.overlay)
        width = max(2, round(min(max(size) / 190, min(size) / 95)))
        self._line_width, self._rim = width * supersampling, max(1, width // 3) * supersampling

    def draw_box(self, box: np.ndarray, colours: Sequence[Colour], thin: bool = False) -> None:
        """Draws a box; in dashes of all colours if there are several."""
        # Rounded to pixels of the final image, for sharp lines; PIL's x2 and y2 are inclusive.
        x1, y1, x2, y2 = (int(np.rint(v / self.supersampling)) * self.supersampling for v in box)
        x2, y2 = max(x2, x1 + self.supersampling) - 1, max(y2, y1 + self.supersampling) - 1
        width, rim = self._line_width, self._rim
        if thin:
            width = max(self.supersampling, width // 2)
        radius = min(2 * width, (x2 - x1) / 2, (y2 - y1) / 2)
        outer = (x1 - rim, y1 - rim, x2 + rim, y2 + rim)
        self._draw.rounded_rectangle(outer, radius + rim, outline=RIM, width=width + 2 * rim)
        self._draw.rounded_rectangle((x1, y1, x2, y2), radius, outline=colours[0], width=width)
        if len(colours) == 1:
            return
        dash = DASH * width
        for number, start in enumerate(np.arange(x1 + radius, x2 - radius, dash).tolist()):
            end, fill = min(start + dash, x2 - radius), colours[number % len(colours)]
            for y in (y1, y2 - width + 1):
                self._draw.rectangle((start, y, end, y + width - 1), fill)
        for number, start in enumerate(np.arange(y1 + radius, y2 - radius, dash).tolist()):
            end, fill = min(start + dash, y2 - radius), colours[number % len(colours)]
            for x in (x1, x2 - width + 1):
                self._draw.rectangle((x, start, x + width - 1, end), fill)

    def draw_link(self, human: np.ndarray, target: np.ndarray, colour: Colour) -> None:
        """Draws a line from the centre of a person's box to that of an object's box, with a disc at
        the person and a square at the object."""
        ends = [((x1 + x2) / 2, (y1 + y2) / 2) for x1, y1, x2, y2 in (human, target)]
        self._draw.line(ends, fill=RIM, width=self._line_width + 2 * self._rim)
        self._draw.line(ends, fill=colour, width=self._line_width)
        for (x, y), draw in zip(ends, (self._draw.ellipse, self._draw.rectangle), strict=True):
            for radius, fill in ((1.8 * self._line_width, WHITE), (1.3 * self._line_width, colour)):
                draw((x - radius, y - radius, x + radius, y + radius), fill=fill)

    def draw_labels(self, labels: Sequence[Label], corners: np.ndarray, em: int) -> None:
        """Draws labels with their top left corners at (N, 2) `corners`, in font size `em`."""
        font = load_font(em)
        sizes = measure_labels([label.lines for label in labels], em)
        for label, corner, size in zip(labels, corners, sizes, strict=True):
            self._draw_leader(label, corner, size, em)
        for label, (left, top), (width, height) in zip(labels, corners, sizes, strict=True):
            radius, last = 0.3 * em, len(label.lines) - 1
            whole = (left, top, left + width, top + height)
            self._draw.rounded_rectangle(whole, radius, label.colour)
            for row, line in enumerate(label.lines):
                right_corners = (False, row == 0, row == last, False)
                y = top + row * LINE_HEIGHT * em
                box = (left + STRIPE * em, y, left + width, y + LINE_HEIGHT * em)
                background = UNSEEN_COLOUR if line.unseen else LABEL_COLOUR
                self._draw.rounded_rectangle(box, radius, (*background, 235), corners=right_corners)
                self._draw_label_line(line, box, font)

    def _draw_label_line(
        self, line: LabelLine, box: tuple[float, float, float, float], font: ImageFont.FreeTypeFont
    ) -> None:
        em, colour = font.size, BLACK if line.unseen else WHITE
        x, middle = box[0] + PADDING * em, (box[1] + box[3]) / 2
        if line.unseen:
            self._draw.polygon(star_polygon(x + 0.5 * em, middle, 0.52 * em), fill=colour)
            x += 1.2 * em
        self._draw.text((x, middle), line.text, fill=colour, font=font, anchor="lm")
        if line.correct is not None:
            self._draw_mark(line.correct, x + font.getlength(line.text) + 0.75 * em, middle, em)

    def _draw_mark(self, correct: bool, x: float, y: float, em: float) -> None:
        """Draws a tick or a cross in a disc."""
        radius = 0.45 * em
        disc = (x - radius, y - radius, x + radius, y + radius)
        self._draw.ellipse(disc, fill=CORRECT_COLOUR if correct else WRONG_COLOUR)
        reach, width = 0.45 * radius, max(2, round(0.12 * em))
        tick = [(-1.0, 0.0), (-0.2, 0.8), (1.0, -0.8)]
        cross = [(-1.0, -1.0), (1.0, 1.0), (0.0, 0.0), (1.0, -1.0), (-1.0, 1.0)]
        points = [(x + reach * dx, y + reach * dy) for dx, dy in (tick if correct else cross)]
        self._draw.line(points, fill=WHITE, width=width, joint="curve")

    def _draw_leader(self, label: Label, corner: np.ndarray, size: np.ndarray, em: int) -> None:
        """Draws a thin line from a label to the nearer one of its boxes, unless it is beside it."""
        tops = (label.boxes[:, :2] + label.boxes[:, [2, 1]]) / 2
        starts = np.clip(tops, corner, corner + size)
        ends = np.clip(starts, label.boxes[:, :2], label.boxes[:, 2:])
        lengths = np.hypot(*(ends - starts).T)
        nearest = int(np.argmin(lengths))
        if lengths[nearest] > em:
            points = [tuple(starts[nearest].tolist()), tuple(ends[nearest].tolist())]
            width = max(1, self._line_width // 2)
            self._draw.line(points, fill=RIM, width=width + 2 * self._rim)
            self._draw.line(points, fill=label.colour, width=width)


def draw_labelled_pairs(
    image: Image.Image,
    labels: Sequence[Label],
    boxes: np.ndarray,
    people: np.ndarray,
    em: int,
    num_pairs: int | None = None,
    regions: np.ndarray | None = None,
) -> Image.Image:
    """Draws boxes, links and labels of pairs.

    Args:
        image: RGB, in the size of the drawing. All boxes are in its pixels.
        labels: with the boxes of their pairs.
        boxes: (N, 4) xyxy of all people and objects, which labels should not cover.
        people: (P, 4) xyxy of the people, whose faces labels should not cover.
        em: font size in pixels.
        num_pairs: number of all pairs. If there are fewer labels, a note says so.
        regions: (N, 4) xyxy, a further box of each label, to draw with a thin line.

    Returns:
        A new RGB image.
    """
    canvas = Canvas(image.size)
    scale = canvas.supersampling
    labels = [replace(label, boxes=label.boxes * scale) for label in labels]
    for region, label in zip(() if regions is None else regions, labels, strict=False):
        canvas.draw_box(region * scale, [label.colour], thin=True)
    colours: dict[tuple[float, ...], list[Colour]] = {}
    for label in labels:
        if len(label.boxes) == 2:
            canvas.draw_link(label.boxes[0], label.boxes[1], label.colour)
        for box in label.boxes.tolist():
            colours.setdefault(tuple(box), []).append(label.colour)
    # Small boxes on top of large ones.
    for box in sorted(colours, key=lambda box: (box[0] - box[2]) * (box[3] - box[1])):
        canvas.draw_box(np.array(box), colours[box])
    targets = np.array([label.boxes[1] for label in labels if len(label.boxes) == 2])
    obstacles = (
        (boxes * scale, BOX_COST),
        (np.unique(targets.reshape(-1, 4), axis=0), OBJECT_COST),
        (face_boxes(people * scale), FACE_COST),
    )
    gap, placed = em * scale / 4, np.zeros((0, 4))
    if num_hidden := (num_pairs or len(labels)) - len(labels):
        note = Label([hidden_pairs_line(num_hidden)], np.tile(canvas.overlay.size, (1, 2)), WHITE)
        size = measure_labels([note.lines], em * scale)
        # In the corner, as it leaves the most room for a large label there.
        corner = np.maximum(canvas.overlay.size - size - gap, 0)
        placed = np.hstack([corner, corner + size])
    corners = place_labels(
        [label.boxes for label in labels],
        measure_labels([label.lines for label in labels], em * scale),
        canvas.overlay.size,
        np.vstack([rows for rows, _ in obstacles]),
        np.concatenate([np.full(len(rows), cost) for rows, cost in obstacles]),
        gap,
        placed,
    )
    if num_hidden:
        labels, corners = [*labels, note], np.vstack([corners, placed[:, :2]])
    canvas.draw_labels(labels, corners, em * scale)
    # For an integer factor, reduce() is much faster than resize().
    overlay = canvas.overlay.reduce(scale)
    return Image.alpha_composite(image.convert("RGBA"), overlay).convert("RGB")


def choose_supersampling(size: tuple[int, int]) -> int:
    """Factor by which the overlay of an image is larger."""
    return SUPERSAMPLING if max(size) <= MAX_SUPERSAMPLED else 1


def font_size(size: tuple[int, int]) -> int:
    """Font size for an image with few labels, in pixels."""
    share = min(LONG_SIDE_SHARE * max(size), SHORT_SIDE_SHARE * min(size))
    return max(MIN_FONT_SIZE, round(share))


def hidden_pairs_line(number: int) -> LabelLine:
    """The note about pairs that are left out."""
    return LabelLine(f"and {count_noun(number, 'more pairs')}")


def fit_labels(labels: Sequence[Sequence[LabelLine]], size: tuple[int, int]) -> tuple[int, int]:
    """Font size in pixels, and how many of the labels are drawn.

    At most as many are drawn as there are colours, so that each has its own. The font shrinks until
    every label fits into the image, and, to half its size at most, until they cover at most
    `LABEL_SHARE` of it. The last labels, which then exceed `MAX_LABEL_SHARE`, are not drawn.
    """
    largest = em = font_size(size)
    supersampling = choose_supersampling(size)
    while True:
        sizes = measure_labels(labels[: len(PAIR_COLOURS)], em * supersampling) / supersampling
        covered = np.cumsum(sizes.prod(axis=1)) / (size[0] * size[1])
        is_crowded = covered[-1] > LABEL_SHARE and em > largest / 2
        fits = (least_size(labels, em * supersampling) <= np.multiply(size, supersampling)).all()
        if em == MIN_FONT_SIZE or (fits and not is_crowded):
            num_drawn = max(1, int((covered <= MAX_LABEL_SHARE).sum()))
            return em, num_drawn
        em = max(MIN_FONT_SIZE, min(em - 1, int(0.93 * em)))


def least_size(labels: Sequence[Sequence[LabelLine]], em: int) -> np.ndarray:
    """(2,) width and height of an image in which each of the labels fits, with the note that the
    others are left out, in pixels."""
    sizes = measure_labels(labels[: len(PAIR_COLOURS)], em)
    if len(labels) == 1:
        return sizes[0] + em
    note = measure_labels([[hidden_pairs_line(len(labels))]], em)[0]
    width, height = sizes.max(axis=0)
    return np.array([max(width, note[0]), height + note[1]]) + em


def measure_labels(labels: Sequence[Sequence[LabelLine]], em: int) -> np.ndarray:
    """(N, 2) width and height of labels in a font size, in pixels."""
    font, sizes = load_font(em), np.zeros((len(labels), 2))
    for row, lines in enumerate(labels):
        widths = [
            font.getlength(line.text) + 1.2 * em * (line.unseen + (line.correct is not None))
            for line in lines
        ]
        sizes[row] = max(widths) + (STRIPE + 2 * PADDING) * em, LINE_HEIGHT * em * len(lines)
    return sizes


def star_polygon(x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """Corners of a five-pointed star around (x, y)."""
    angles = np.pi / 2 + np.arange(10) * np.pi / 5
    radii = np.tile([radius, 0.42 * radius], 5)
    xs, ys = x + radii * np.cos(angles), y - radii * np.sin(angles)
    return list(zip(xs.tolist(), ys.tolist(), strict=True))


@lru_cache(maxsize=32)
def load_font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans from the matplotlib package, or Pillow's own font without it."""
    # find_spec does not import the package.
    spec = importlib.util.find_spec("matplotlib")
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return ImageFont.truetype(str(path), size)
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def add_margin(image: Image.Image, least: Sequence[int]) -> tuple[Image.Image, np.ndarray]:
    """The image in the middle of one that has at least a given width and height, and the (4,)
    offset of its boxes."""
    size = (max(image.width, least[0]), max(image.height, least[1]))
    left, top = (size[0] - image.width) // 2, (size[1] - image.height) // 2
    framed = Image.new("RGB", size, MARGIN_COLOUR)
    framed.paste(image, (left, top))
    return framed, np.array([left, top, left, top])


def tile_images(
    images: Sequence[Image.Image], columns: int, gap: int, background: str
) -> Image.Image:
    """Images in rows of `columns`, on a new RGB image with `gap` pixels between them."""
    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    heights = [max(image.height for image in row) + gap for row in rows]
    widths = [sum(image.width + gap for image in row) for row in rows]
    sheet = Image.new("RGB", (max(widths) - gap, sum(heights) - gap), background)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for image in row:
            sheet.paste(image, (left, top))
            left += image.width + gap
        top += height
    return sheet
