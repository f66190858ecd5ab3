"""Boxes, links and labels on an image, and where labels find a place."""

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
# Letters, in pixels; as shares of the long and of the short side; and the share of the picture that
# labels may take together before letters shrink.
MIN_FONT_SIZE = 11
LONG_SIDE_SHARE, SHORT_SIDE_SHARE, MAX_LABEL_SHARE = 1 / 28, 1 / 14, 0.35
LINE_HEIGHT = 1.42
# Above this long side the drawing is sharp enough without drawing twice as large and shrinking.
MAX_SUPERSAMPLED = 1280


@dataclass(frozen=True)
class LabelLine:
    """One line of a label: an action, and what is known about it."""

    text: str
    unseen: bool
    correct: bool | None = None


class Canvas:
    """A transparent overlay; line widths and letters follow its size.

    Args:
        size: of the picture, in pixels.
        supersampling: how many times larger it is drawn.
        labels: that will be drawn; letters shrink to leave room beside them.
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
        """A box with a dark rim, so that it stands out on any ground."""
        # Whole pixels of the result keep the lines crisp; PIL's far edges are inclusive.
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
        """A line between the centres of two boxes."""
        ends = [_centre(human), _centre(target)]
        rim = self._supersampling
        self._draw.line(ends, fill=(*BLACK, 130), width=self._line_width + 2 * rim)
        self._draw.line(ends, fill=WHITE, width=self._line_width)
        for (x, y), colour in zip(ends, (PERSON_COLOUR, OBJECT_COLOUR), strict=True):
            radius = 1.6 * self._line_width
            self._draw.ellipse(
                (x - radius, y - radius, x + radius, y + radius),
                fill=colour,
                outline=WHITE,
                width=rim,
            )

    def draw_labels(
        self, captions: list[tuple[np.ndarray, list[LabelLine]]], boxes: np.ndarray
    ) -> None:
        """Every pair's label near its person, none over another."""
        sizes = np.array([_measure_label(lines, self._font) for _, lines in captions]).reshape(
            -1, 2
        )
        anchors = np.array([box for box, _ in captions]).reshape(-1, 4)
        places = place_labels(anchors, sizes, self.overlay.size, boxes, gap=2 * self._line_width)
        for place, size, anchor in zip(places, sizes, anchors, strict=True):
            self._draw_leader(place, size, anchor)
        for (_, lines), place, size in zip(captions, places, sizes, strict=True):
            top = place[1]
            for line in lines:
                self._draw_label_line(line, place[0], top, size[0])
                top += self._line_height

    @property
    def _line_height(self) -> float:
        return LINE_HEIGHT * self._em

    def _draw_label_line(self, line: LabelLine, x: float, y: float, width: float) -> None:
        ground, ink = (UNSEEN_COLOUR, BLACK) if line.unseen else (LABEL_COLOUR, WHITE)
        bottom, em = y + self._line_height, self._em
        self._draw.rounded_rectangle((x, y, x + width, bottom), 0.3 * em, fill=(*ground, 235))
        middle, x = (y + bottom) / 2, x + 0.35 * em
        if line.unseen:
            self._draw.polygon(star_polygon(x + 0.5 * em, middle, 0.52 * em), fill=ink)
            x += 1.2 * em
        self._draw.text((x, middle), line.text, fill=ink, font=self._font, anchor="lm")
        if line.correct is not None:
            self._draw_mark(line.correct, x + self._font.getlength(line.text) + 0.75 * em, middle)

    def _draw_mark(self, correct: bool, x: float, y: float) -> None:
        """A tick or a cross in a disc."""
        radius = 0.45 * self._em
        disc = (x - radius, y - radius, x + radius, y + radius)
        self._draw.ellipse(disc, fill=CORRECT_COLOUR if correct else WRONG_COLOUR)
        reach, width = 0.45 * radius, max(2, round(0.12 * self._em))
        if correct:
            tick = [
                (x - reach, y),
                (x - 0.2 * reach, y + 0.8 * reach),
                (x + reach, y - 0.8 * reach),
            ]
            self._draw.line(tick, fill=WHITE, width=width, joint="curve")
        else:
            for sign in (1, -1):
                ends = [(x - reach, y - sign * reach), (x + reach, y + sign * reach)]
                self._draw.line(ends, fill=WHITE, width=width)

    def _draw_leader(self, place: np.ndarray, size: np.ndarray, anchor: np.ndarray) -> None:
        """A thin line to the person from a label that found no room beside them."""
        x = float(np.clip((anchor[0] + anchor[2]) / 2, place[0], place[0] + size[0]))
        y = float(np.clip(anchor[1], place[1], place[1] + size[1]))
        end_x = float(np.clip(x, anchor[0], anchor[2]))
        end_y = float(np.clip(y, anchor[1], anchor[3]))
        if np.hypot(end_x - x, end_y - y) > self._em:
            ends = [(x, y), (end_x, end_y)]
            self._draw.line(ends, fill=(*BLACK, 130), width=self._line_width + 2)
            self._draw.line(ends, fill=PERSON_COLOUR, width=max(1, self._line_width // 2))


def font_size(size: tuple[int, int], labels: Sequence[Sequence[LabelLine]]) -> int:
    """Height of letters in a picture, in pixels.

    They follow the picture's size and shrink, as far as they stay readable, until every label fits
    into it and all together leave most of it free.
    """
    letter = max(
        MIN_FONT_SIZE, round(min(LONG_SIDE_SHARE * max(size), SHORT_SIDE_SHARE * min(size)))
    )
    while labels and letter > MIN_FONT_SIZE:
        widths, heights = np.array([_measure_label(one, load_font(letter)) for one in labels]).T
        area = float((widths * heights).sum()) / (size[0] * size[1])
        if widths.max() <= size[0] and heights.max() <= size[1] and area <= MAX_LABEL_SHARE:
            break
        letter = max(MIN_FONT_SIZE, min(letter - 1, int(0.9 * letter)))
    return letter


def _measure_label(lines: Sequence[LabelLine], font: ImageFont.FreeTypeFont) -> tuple[float, float]:
    marks = [1.2 * (line.unseen + (line.correct is not None)) * font.size for line in lines]
    texts = [font.getlength(line.text) for line in lines]
    width = max(mark + text for mark, text in zip(marks, texts, strict=True))
    return width + 0.7 * font.size, LINE_HEIGHT * font.size * len(lines)


def _centre(box: np.ndarray) -> tuple[float, float]:
    return float(box[0] + box[2]) / 2, float(box[1] + box[3]) / 2


def star_polygon(x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """Corners of a five-pointed star around (x, y)."""
    angles = np.pi / 2 + np.arange(10) * np.pi / 5
    reach = np.where(np.arange(10) % 2 == 0, radius, 0.42 * radius)
    corners = zip(x + reach * np.cos(angles), y - reach * np.sin(angles), strict=True)
    return [(float(cx), float(cy)) for cx, cy in corners]


@lru_cache(maxsize=32)
def load_font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib, or else Pillow's own letters."""
    # Finding the package does not import it.
    spec = importlib.util.find_spec("matplotlib")
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return ImageFont.truetype(str(path), size)
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


# Costs in label heights of distance: overlap of labels is out of the question while there is any
# room; hiding what the boxes show is bad but better than going far away.
LABEL_OVERLAP_COST = 1000.0
BOX_OVERLAP_COST = 2.5


def place_labels(
    anchors: np.ndarray,
    sizes: np.ndarray,
    image_size: tuple[int, int],
    boxes: np.ndarray,
    gap: float,
) -> np.ndarray:
    """Places labels one after the other, each where it costs least.

    Args:
        anchors: (N, 4) xyxy boxes that the labels name; a label wants to sit on top of its own.
        sizes: (N, 2) label widths and heights.
        image_size: width and height.
        boxes: (M, 4) xyxy boxes, better left uncovered.
        gap: free pixels wanted between labels.

    Returns:
        (N, 2) top left corners. All lengths in pixels of the picture.
    """
    places = np.zeros((len(anchors), 2))
    # Tall labels first: they are the hardest to place.
    order = np.argsort(-sizes[:, 1], kind="stable") if len(sizes) else np.zeros(0, dtype=int)
    taken = np.zeros((0, 4))
    for row in order:
        corners = _candidate_corners(anchors[row], sizes[row], image_size)
        labels = np.hstack([corners, corners + sizes[row]])
        height = sizes[row, 1]
        distance = _label_distance(labels, anchors[row], gap) / height
        area = sizes[row].prod()
        crowded = _overlap_area(labels + np.array([-gap, -gap, gap, gap]), taken) / area
        covered = _overlap_area(labels, boxes) / area
        cost = distance + LABEL_OVERLAP_COST * crowded + BOX_OVERLAP_COST * np.minimum(covered, 2)
        places[row] = corners[int(np.argmin(cost))]
        taken = np.vstack([taken, np.hstack([places[row], places[row] + sizes[row]])])
    return places


def _candidate_corners(
    anchor: np.ndarray, size: np.ndarray, image_size: tuple[int, int]
) -> np.ndarray:
    """(C, 2) corners: directly above, below and inside the anchor, then a grid over the picture;
    all inside the picture as far as the label fits."""
    x1, y1, x2, y2 = anchor
    width, height = size
    middle = (x1 + x2 - width) / 2
    own = [(x, y) for y in (y1 - height, y2, y1, y2 - height) for x in (x1, middle, x2 - width)]
    steps = max(float(height) / 3, 1.0)
    grid_x, grid_y = np.meshgrid(
        np.arange(0, image_size[0], steps), np.arange(0, image_size[1], steps)
    )
    corners = np.vstack([np.array(own), np.column_stack([grid_x.ravel(), grid_y.ravel()])])
    room = np.maximum(np.array(image_size) - size, 0)
    return np.clip(corners, 0, room)


def _label_distance(labels: np.ndarray, anchor: np.ndarray, gap: float) -> np.ndarray:
    """(C,) how far labels are from sitting on the anchor's upper edge."""
    dx = np.abs((labels[:, 0] + labels[:, 2] - anchor[0] - anchor[2]) / 2)
    slack = (labels[:, 2] - labels[:, 0] + anchor[2] - anchor[0]) / 2
    above = np.abs(labels[:, 3] + gap - anchor[1])
    below = np.abs(labels[:, 1] - gap - anchor[3]) + (labels[:, 3] - labels[:, 1]) / 2
    # Within the anchor's reach sideways shifts cost little, beyond it they cost in full.
    return np.minimum(above, below) + 0.25 * dx + np.maximum(dx - slack, 0)


def _overlap_area(labels: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(C,) area of each label under any of the other boxes, counted once for each."""
    # Other by other, over long columns: tables of pairs of corners take three times as long.
    left, top, right, bottom = np.ascontiguousarray(labels.T)
    shared = np.zeros(len(labels))
    for x1, y1, x2, y2 in others.tolist():
        width = np.minimum(right, x2) - np.maximum(left, x1)
        height = np.minimum(bottom, y2) - np.maximum(top, y1)
        shared += np.maximum(width, 0) * np.maximum(height, 0)
    return shared
