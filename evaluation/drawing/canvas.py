"""A canvas of boxes, links and labels over an image, and the placement of labels."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PERSON_COLOUR, OBJECT_COLOUR = (86, 180, 233), (230, 159, 0)
LABEL_COLOUR, UNSEEN_COLOUR = (24, 28, 36), (240, 228, 66)
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
CORRECT_COLOUR, WRONG_COLOUR = (0, 158, 115), (213, 94, 0)
# Font size in pixels, at least; and as fractions of the image's long and short side, at most.
MIN_FONT_SIZE = 11
LONG_SIDE_SHARE, SHORT_SIDE_SHARE = 1 / 28, 1 / 14
# Fraction of the image that all labels may cover together; the font shrinks until they fit.
MAX_LABEL_SHARE = 0.35
# In font sizes.
LINE_HEIGHT = 1.42
# Images with a longer side are sharp enough without supersampling.
MAX_SUPERSAMPLED = 1280
# Costs of a label's position, relative to a distance of one label height. Labels overlap only if
# there is no free position at all; covering boxes is better than being far away.
LABEL_OVERLAP_COST = 1000.0
BOX_OVERLAP_COST = 2.5


@dataclass(frozen=True)
class LabelLine:
    """One line of a label: an action, whether it is unseen, and whether it is correct."""

    text: str
    unseen: bool
    correct: bool | None = None


class Canvas:
    """A transparent overlay, whose line widths and font size depend on its size.

    Args:
        size: width and height of the image, in pixels.
        supersampling: factor by which the overlay is larger than the image.
        labels: that will be drawn; the font shrinks if they would cover too much of the image.
    """

    def __init__(
        self, size: tuple[int, int], supersampling: int, labels: Sequence[Sequence[LabelLine]] = ()
    ) -> None:
        self.overlay = Image.new(
            "RGBA", (size[0] * supersampling, size[1] * supersampling), (0, 0, 0, 0)
        )
        self._draw = ImageDraw.Draw(self.overlay)
        self._supersampling = supersampling
        self._line_width = max(2, round(min(max(size) / 190, min(size) / 95))) * supersampling
        self._font = load_font(font_size(size, labels) * supersampling)
        self._em = self._font.size

    def draw_box(self, box: np.ndarray, colour: tuple[int, int, int]) -> None:
        """Draws a box with a dark outline, so that it is visible on any background."""
        # Rounded to pixels of the final image, for sharp lines; PIL's x2 and y2 are inclusive.
        x1, y1, x2, y2 = (int(np.rint(v / self._supersampling)) * self._supersampling for v in box)
        x2, y2 = max(x2, x1 + self._supersampling) - 1, max(y2, y1 + self._supersampling) - 1
        radius = min(2 * self._line_width, (x2 - x1) / 2, (y2 - y1) / 2)
        rim = self._supersampling
        outer = (x1 - rim, y1 - rim, x2 + rim, y2 + rim)
        self._draw.rounded_rectangle(
            outer, radius + rim, outline=(*BLACK, 130), width=self._line_width + 2 * rim
        )
        self._draw.rounded_rectangle(
            (x1, y1, x2, y2), radius, outline=colour, width=self._line_width
        )

    def draw_link(self, human: np.ndarray, target: np.ndarray) -> None:
        """Draws a line between the centres of two boxes."""
        ends = [((x1 + x2) / 2, (y1 + y2) / 2) for x1, y1, x2, y2 in (human, target)]
        rim = self._supersampling
        self._draw.line(ends, fill=(*BLACK, 130), width=self._line_width + 2 * rim)
        self._draw.line(ends, fill=WHITE, width=self._line_width)
        for (x, y), colour in zip(ends, (PERSON_COLOUR, OBJECT_COLOUR), strict=True):
            radius = 1.6 * self._line_width
            disc = (x - radius, y - radius, x + radius, y + radius)
            self._draw.ellipse(disc, fill=colour, outline=WHITE, width=rim)

    def draw_labels(
        self, captions: list[tuple[np.ndarray, list[LabelLine]]], boxes: np.ndarray
    ) -> None:
        """Draws labels near their boxes without overlap.

        Args:
            captions: (4,) xyxy box of the person and lines of the label, for each pair.
            boxes: (N, 4) xyxy, boxes that labels should not cover.
        """
        if not captions:
            return
        sizes = np.array([_measure_label(lines, self._font) for _, lines in captions])
        anchors = np.array([box for box, _ in captions])
        corners = place_labels(anchors, sizes, self.overlay.size, boxes, gap=2 * self._line_width)
        for corner, size, anchor in zip(corners, sizes, anchors, strict=True):
            self._draw_leader(corner, size, anchor)
        for (_, lines), (left, top), size in zip(captions, corners, sizes, strict=True):
            for line in lines:
                self._draw_label_line(line, left, top, size[0])
                top += LINE_HEIGHT * self._em

    def _draw_label_line(self, line: LabelLine, x: float, y: float, width: float) -> None:
        background, text_colour = (UNSEEN_COLOUR, BLACK) if line.unseen else (LABEL_COLOUR, WHITE)
        bottom, em = y + LINE_HEIGHT * self._em, self._em
        self._draw.rounded_rectangle((x, y, x + width, bottom), 0.3 * em, fill=(*background, 235))
        middle, x = (y + bottom) / 2, x + 0.35 * em
        if line.unseen:
            self._draw.polygon(star_polygon(x + 0.5 * em, middle, 0.52 * em), fill=text_colour)
            x += 1.2 * em
        self._draw.text((x, middle), line.text, fill=text_colour, font=self._font, anchor="lm")
        if line.correct is not None:
            self._draw_mark(line.correct, x + self._font.getlength(line.text) + 0.75 * em, middle)

    def _draw_mark(self, correct: bool, x: float, y: float) -> None:
        """Draws a tick or a cross in a disc."""
        radius = 0.45 * self._em
        disc = (x - radius, y - radius, x + radius, y + radius)
        self._draw.ellipse(disc, fill=CORRECT_COLOUR if correct else WRONG_COLOUR)
        reach, width = 0.45 * radius, max(2, round(0.12 * self._em))
        tick = [(-1.0, 0.0), (-0.2, 0.8), (1.0, -0.8)]
        cross = [(-1.0, -1.0), (1.0, 1.0), (0.0, 0.0), (1.0, -1.0), (-1.0, 1.0)]
        points = [(x + reach * dx, y + reach * dy) for dx, dy in (tick if correct else cross)]
        self._draw.line(points, fill=WHITE, width=width, joint="curve")

    def _draw_leader(self, corner: np.ndarray, size: np.ndarray, anchor: np.ndarray) -> None:
        """Draws a thin line from a label to its box, unless they are next to each other."""
        start = np.clip([(anchor[0] + anchor[2]) / 2, anchor[1]], corner, corner + size)
        end = np.clip(start, anchor[:2], anchor[2:])
        if np.hypot(*(end - start)) > self._em:
            ends = [tuple(start.tolist()), tuple(end.tolist())]
            self._draw.line(ends, fill=(*BLACK, 130), width=self._line_width + 2)
            self._draw.line(ends, fill=PERSON_COLOUR, width=max(1, self._line_width // 2))


def font_size(size: tuple[int, int], labels: Sequence[Sequence[LabelLine]]) -> int:
    """Font size for an image of a given size and its labels, in pixels.

    It is proportional to the size of the image and reduced, down to `MIN_FONT_SIZE`, until every
    label fits into the image and all of them cover at most `MAX_LABEL_SHARE` of it.
    """
    em = max(MIN_FONT_SIZE, round(min(LONG_SIDE_SHARE * max(size), SHORT_SIDE_SHARE * min(size))))
    while labels and em > MIN_FONT_SIZE:
        widths, heights = np.array([_measure_label(lines, load_font(em)) for lines in labels]).T
        area = float((widths * heights).sum()) / (size[0] * size[1])
        if widths.max() <= size[0] and heights.max() <= size[1] and area <= MAX_LABEL_SHARE:
            break
        em = max(MIN_FONT_SIZE, min(em - 1, int(0.9 * em)))
    return em


def _measure_label(lines: Sequence[LabelLine], font: ImageFont.FreeTypeFont) -> tuple[float, float]:
    """Width and height of a label in pixels."""
    mark_widths = [1.2 * (line.unseen + (line.correct is not None)) * font.size for line in lines]
    text_widths = [font.getlength(line.text) for line in lines]
    width = max(mark + text for mark, text in zip(mark_widths, text_widths, strict=True))
    return width + 0.7 * font.size, LINE_HEIGHT * font.size * len(lines)


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


def place_labels(
    anchors: np.ndarray,
    sizes: np.ndarray,
    image_size: tuple[int, int],
    boxes: np.ndarray,
    gap: float,
) -> np.ndarray:
    """Positions of labels, chosen one after the other, each with the lowest cost.

    Args:
        anchors: (N, 4) xyxy boxes of the labels; the best position is directly above the box.
        sizes: (N, 2) label widths and heights.
        image_size: width and height of the image.
        boxes: (M, 4) xyxy boxes that labels should not cover.
        gap: free distance between labels.

    Returns:
        (N, 2) top left corners. All lengths are in pixels of the image.
    """
    chosen, placed = np.zeros((len(anchors), 2)), np.zeros((0, 4))
    # Tall labels first, as they are the hardest to place.
    for row in np.argsort(-sizes[:, 1], kind="stable"):
        corners = _candidate_corners(anchors[row], sizes[row], image_size)
        labels, area = np.hstack([corners, corners + sizes[row]]), sizes[row].prod()
        distance = _label_distance(labels, anchors[row], gap) / sizes[row, 1]
        label_overlap = _overlap_area(labels + np.array([-gap, -gap, gap, gap]), placed) / area
        box_overlap = np.minimum(_overlap_area(labels, boxes) / area, 2)
        cost = distance + LABEL_OVERLAP_COST * label_overlap + BOX_OVERLAP_COST * box_overlap
        best = int(np.argmin(cost))
        chosen[row] = corners[best]
        placed = np.vstack([placed, labels[best]])
    return chosen


def _candidate_corners(
    anchor: np.ndarray, size: np.ndarray, image_size: tuple[int, int]
) -> np.ndarray:
    """(C, 2) top left corners: directly above, below and inside the anchor, and a grid over the
    image; clipped so that the label is inside the image if it fits."""
    x1, y1, x2, y2 = anchor
    width, height = size
    middle = (x1 + x2 - width) / 2
    steps = max(float(height) / 3, 1.0)
    at_anchor = [
        (x, y) for y in (y1 - height, y2, y1, y2 - height) for x in (x1, middle, x2 - width)
    ]
    grid = np.mgrid[0 : image_size[0] : steps, 0 : image_size[1] : steps].reshape(2, -1).T
    corners = np.vstack([at_anchor, grid])
    return np.clip(corners, 0, np.maximum(np.array(image_size) - size, 0))


def _label_distance(labels: np.ndarray, anchor: np.ndarray, gap: float) -> np.ndarray:
    """(C,) distance of labels from the position directly above the anchor."""
    dx = np.abs((labels[:, 0] + labels[:, 2] - anchor[0] - anchor[2]) / 2)
    slack = (labels[:, 2] - labels[:, 0] + anchor[2] - anchor[0]) / 2
    above = np.abs(labels[:, 3] + gap - anchor[1])
    below = np.abs(labels[:, 1] - gap - anchor[3]) + (labels[:, 3] - labels[:, 1]) / 2
    # Horizontal shifts cost little while label and anchor overlap horizontally, else in full.
    return np.minimum(above, below) + 0.25 * dx + np.maximum(dx - slack, 0)


def _overlap_area(labels: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(C,) sum of the areas that each label shares with the other boxes."""
    low = np.maximum(labels[:, None, :2], others[:, :2])
    high = np.minimum(labels[:, None, 2:], others[:, 2:])
    return np.clip(high - low, 0, None).prod(axis=2).sum(axis=1)


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
