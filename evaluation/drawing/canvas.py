"""Boxes, links and labels on an image, and where labels find a place."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PERSON, OBJECT = (86, 180, 233), (230, 159, 0)
PLAIN, UNSEEN = (24, 28, 36), (240, 228, 66)
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
RIGHT, WRONG = (0, 158, 115), (213, 94, 0)
# Letters, in pixels; as shares of the long and of the short side; and the share of the picture that
# labels may take together before letters shrink.
LEAST_LETTER = 11
LONG_SHARE, SHORT_SHARE, LABEL_SHARE = 1 / 28, 1 / 14, 0.35
LINE_HEIGHT = 1.42
# Above this long side the drawing is sharp enough without drawing twice as large and shrinking.
MAX_SUPERSAMPLED = 1280


@dataclass(frozen=True)
class Line:
    """One line of a label: an action, and what is known about it."""

    text: str
    unseen: bool
    right: bool | None = None


class Canvas:
    """A transparent overlay; line widths and letters follow its size.

    Args:
        size: of the picture, in pixels.
        sampling: how many times larger it is drawn.
        labels: that will be drawn; letters shrink to leave room beside them.
    """

    def __init__(
        self, size: tuple[int, int], sampling: int, labels: Sequence[Sequence[Line]] = ()
    ) -> None:
        self.overlay = Image.new("RGBA", (size[0] * sampling, size[1] * sampling), (0, 0, 0, 0))
        self._pen = ImageDraw.Draw(self.overlay)
        self._sampling = sampling
        self._width = max(2, round(min(max(size) / 190, min(size) / 95))) * sampling
        self._font = load_font(letter_size(size, labels) * sampling)
        self._em = self._font.size

    def box(self, box: np.ndarray, colour: tuple[int, int, int]) -> None:
        """A box with a dark rim, so that it stands out on any ground."""
        # Whole pixels of the result keep the lines crisp; PIL's far edges are inclusive.
        x1, y1, x2, y2 = (int(np.rint(v / self._sampling)) * self._sampling for v in box)
        x2, y2 = max(x2, x1 + self._sampling) - 1, max(y2, y1 + self._sampling) - 1
        radius = min(2 * self._width, (x2 - x1) / 2, (y2 - y1) / 2)
        rim = self._sampling
        outer = (x1 - rim, y1 - rim, x2 + rim, y2 + rim)
        self._pen.rounded_rectangle(
            outer, radius + rim, outline=(*BLACK, 130), width=self._width + 2 * rim
        )
        self._pen.rounded_rectangle((x1, y1, x2, y2), radius, outline=colour, width=self._width)

    def link(self, human: np.ndarray, target: np.ndarray) -> None:
        """A line between the centres of two boxes."""
        ends = [_centre(human), _centre(target)]
        rim = self._sampling
        self._pen.line(ends, fill=(*BLACK, 130), width=self._width + 2 * rim)
        self._pen.line(ends, fill=WHITE, width=self._width)
        for (x, y), colour in zip(ends, (PERSON, OBJECT), strict=True):
            radius = 1.6 * self._width
            self._pen.ellipse(
                (x - radius, y - radius, x + radius, y + radius),
                fill=colour,
                outline=WHITE,
                width=rim,
            )

    def labels(self, captions: list[tuple[np.ndarray, list[Line]]], boxes: np.ndarray) -> None:
        """Every pair's label near its person, none over another."""
        sizes = np.array([_label_size(lines, self._font) for _, lines in captions]).reshape(-1, 2)
        anchors = np.array([box for box, _ in captions]).reshape(-1, 4)
        places = place_labels(anchors, sizes, self.overlay.size, boxes, gap=2 * self._width)
        for place, size, anchor in zip(places, sizes, anchors, strict=True):
            self._leader(place, size, anchor)
        for (_, lines), place, size in zip(captions, places, sizes, strict=True):
            top = place[1]
            for line in lines:
                self._label_line(line, place[0], top, size[0])
                top += self._line_height

    @property
    def _line_height(self) -> float:
        return LINE_HEIGHT * self._em

    def _label_line(self, line: Line, x: float, y: float, width: float) -> None:
        ground, ink = (UNSEEN, BLACK) if line.unseen else (PLAIN, WHITE)
        bottom, em = y + self._line_height, self._em
        self._pen.rounded_rectangle((x, y, x + width, bottom), 0.3 * em, fill=(*ground, 235))
        middle, x = (y + bottom) / 2, x + 0.35 * em
        if line.unseen:
            self._pen.polygon(star(x + 0.5 * em, middle, 0.52 * em), fill=ink)
            x += 1.2 * em
        self._pen.text((x, middle), line.text, fill=ink, font=self._font, anchor="lm")
        if line.right is not None:
            self._mark(line.right, x + self._font.getlength(line.text) + 0.75 * em, middle)

    def _mark(self, right: bool, x: float, y: float) -> None:
        """A tick or a cross in a disc."""
        radius = 0.45 * self._em
        disc = (x - radius, y - radius, x + radius, y + radius)
        self._pen.ellipse(disc, fill=RIGHT if right else WRONG)
        reach, width = 0.45 * radius, max(2, round(0.12 * self._em))
        if right:
            tick = [
                (x - reach, y),
                (x - 0.2 * reach, y + 0.8 * reach),
                (x + reach, y - 0.8 * reach),
            ]
            self._pen.line(tick, fill=WHITE, width=width, joint="curve")
        else:
            for sign in (1, -1):
                ends = [(x - reach, y - sign * reach), (x + reach, y + sign * reach)]
                self._pen.line(ends, fill=WHITE, width=width)

    def _leader(self, place: np.ndarray, size: np.ndarray, anchor: np.ndarray) -> None:
        """A thin line to the person from a label that found no room beside them."""
        x = float(np.clip((anchor[0] + anchor[2]) / 2, place[0], place[0] + size[0]))
        y = float(np.clip(anchor[1], place[1], place[1] + size[1]))
        end_x = float(np.clip(x, anchor[0], anchor[2]))
        end_y = float(np.clip(y, anchor[1], anchor[3]))
        if np.hypot(end_x - x, end_y - y) > self._em:
            ends = [(x, y), (end_x, end_y)]
            self._pen.line(ends, fill=(*BLACK, 130), width=self._width + 2)
            self._pen.line(ends, fill=PERSON, width=max(1, self._width // 2))


def letter_size(size: tuple[int, int], labels: Sequence[Sequence[Line]]) -> int:
    """Height of letters in a picture, in pixels.

    They follow the picture's size and shrink, as far as they stay readable, until every label fits
    into it and all together leave most of it free.
    """
    letter = max(LEAST_LETTER, round(min(LONG_SHARE * max(size), SHORT_SHARE * min(size))))
    while labels and letter > LEAST_LETTER:
        widths, heights = np.array([_label_size(one, load_font(letter)) for one in labels]).T
        area = float((widths * heights).sum()) / (size[0] * size[1])
        if widths.max() <= size[0] and heights.max() <= size[1] and area <= LABEL_SHARE:
            break
        letter = max(LEAST_LETTER, min(letter - 1, int(0.9 * letter)))
    return letter


def _label_size(lines: Sequence[Line], font: ImageFont.FreeTypeFont) -> tuple[float, float]:
    marks = [1.2 * (line.unseen + (line.right is not None)) * font.size for line in lines]
    texts = [font.getlength(line.text) for line in lines]
    width = max(mark + text for mark, text in zip(marks, texts, strict=True))
    return width + 0.7 * font.size, LINE_HEIGHT * font.size * len(lines)


def _centre(box: np.ndarray) -> tuple[float, float]:
    return float(box[0] + box[2]) / 2, float(box[1] + box[3]) / 2


def star(x: float, y: float, radius: float) -> list[tuple[float, float]]:
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
LABEL_OVERLAP = 1000.0
BOX_OVERLAP = 2.5


def place_labels(
    anchors: np.ndarray,
    sizes: np.ndarray,
    picture: tuple[int, int],
    boxes: np.ndarray,
    gap: float,
) -> np.ndarray:
    """Places labels one after the other, each where it costs least.

    Args:
        anchors: (N, 4) xyxy boxes that the labels name; a label wants to sit on top of its own.
        sizes: (N, 2) label widths and heights.
        picture: width and height.
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
        corners = _candidates(anchors[row], sizes[row], picture)
        labels = np.hstack([corners, corners + sizes[row]])
        height = sizes[row, 1]
        distance = _distance(labels, anchors[row], gap) / height
        area = sizes[row].prod()
        crowded = _overlap(labels + np.array([-gap, -gap, gap, gap]), taken) / area
        covered = _overlap(labels, boxes) / area
        cost = distance + LABEL_OVERLAP * crowded + BOX_OVERLAP * np.minimum(covered, 2)
        places[row] = corners[int(np.argmin(cost))]
        taken = np.vstack([taken, np.hstack([places[row], places[row] + sizes[row]])])
    return places


def _candidates(anchor: np.ndarray, size: np.ndarray, picture: tuple[int, int]) -> np.ndarray:
    """(C, 2) corners: directly above, below and inside the anchor, then a grid over the picture;
    all inside the picture as far as the label fits."""
    x1, y1, x2, y2 = anchor
    width, height = size
    middle = (x1 + x2 - width) / 2
    own = [(x, y) for y in (y1 - height, y2, y1, y2 - height) for x in (x1, middle, x2 - width)]
    steps = max(float(height) / 3, 1.0)
    grid_x, grid_y = np.meshgrid(np.arange(0, picture[0], steps), np.arange(0, picture[1], steps))
    corners = np.vstack([np.array(own), np.column_stack([grid_x.ravel(), grid_y.ravel()])])
    room = np.maximum(np.array(picture) - size, 0)
    return np.clip(corners, 0, room)


def _distance(labels: np.ndarray, anchor: np.ndarray, gap: float) -> np.ndarray:
    """(C,) how far labels are from sitting on the anchor's upper edge."""
    dx = np.abs((labels[:, 0] + labels[:, 2] - anchor[0] - anchor[2]) / 2)
    slack = (labels[:, 2] - labels[:, 0] + anchor[2] - anchor[0]) / 2
    above = np.abs(labels[:, 3] + gap - anchor[1])
    below = np.abs(labels[:, 1] - gap - anchor[3]) + (labels[:, 3] - labels[:, 1]) / 2
    # Within the anchor's reach sideways shifts cost little, beyond it they cost in full.
    return np.minimum(above, below) + 0.25 * dx + np.maximum(dx - slack, 0)


def _overlap(labels: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(C,) area of each label under any of the other boxes, counted once for each."""
    # Other by other, over long columns: tables of pairs of corners take three times as long.
    left, top, right, bottom = np.ascontiguousarray(labels.T)
    shared = np.zeros(len(labels))
    for x1, y1, x2, y2 in others.tolist():
        width = np.minimum(right, x2) - np.maximum(left, x1)
        height = np.minimum(bottom, y2) - np.maximum(top, y1)
        shared += np.maximum(width, 0) * np.maximum(height, 0)
    return shared
