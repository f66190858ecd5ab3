"""Draws an annotation or detections on an image, and the legend below."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from PIL import Image, ImageDraw

from evaluation.drawing.canvas import (
    BLACK,
    LABEL_COLOUR,
    MAX_SUPERSAMPLED,
    OBJECT_COLOUR,
    PERSON_COLOUR,
    UNSEEN_COLOUR,
    WHITE,
    Canvas,
    LabelLine,
    font_size,
    load_font,
    star_polygon,
)
from pipeline.types import Annotation, Detections
from pipeline.vocabulary import Vocabulary

LEGEND_ENTRIES = ("person", "object", "unseen in training")
# In font sizes: width of a mark and its gap, margin after an entry, height of a row.
MARK_WIDTH, ENTRY_MARGIN, ROW_HEIGHT = 1.4, 0.8, 1.7
# Drawn larger by this factor and downscaled, for smooth edges.
SUPERSAMPLING = 2
# Minimum long side of a drawing in pixels.
MIN_LONG_SIDE = 512


def add_legend(image: Image.Image) -> Image.Image:
    """Adds a strip below a drawing: the colours of people and objects, and the star.

    Returns:
        A new RGB image, higher by the strip. In narrow images the entries are below each other, and
        the font shrinks until the longest one fits.
    """
    width = image.width * SUPERSAMPLING
    em = round(0.85 * font_size(image.size, ())) * SUPERSAMPLING
    while em > 1 and max(_entry_widths(em)) + ENTRY_MARGIN * em > width:
        em -= 1
    rows = _layout_rows(em, width)
    strip = Image.new("RGB", (width, round((len(rows) + 0.2) * ROW_HEIGHT * em)), LABEL_COLOUR)
    for number, row in enumerate(rows):
        x = ENTRY_MARGIN * em
        for entry in row:
            _draw_legend_entry(
                ImageDraw.Draw(strip), entry, x, (number + 0.6) * ROW_HEIGHT * em, em
            )
            x += _entry_widths(em)[entry] + ENTRY_MARGIN * em
    size = (image.width, max(1, strip.height // SUPERSAMPLING))
    strip = strip.resize(size, Image.Resampling.LANCZOS)
    result = Image.new("RGB", (image.width, image.height + strip.height))
    result.paste(image, (0, 0))
    result.paste(strip, (0, image.height))
    return result


def _layout_rows(em: int, width: float) -> list[list[int]]:
    """Indices of `LEGEND_ENTRIES` in rows that are no wider than the image."""
    rows: list[list[int]] = []
    right = width
    for entry, entry_width in enumerate(_entry_widths(em)):
        if right + entry_width + ENTRY_MARGIN * em > width:
            rows.append([])
            right = ENTRY_MARGIN * em
        rows[-1].append(entry)
        right += entry_width + ENTRY_MARGIN * em
    return rows


def _entry_widths(em: int) -> list[float]:
    return [MARK_WIDTH * em + load_font(em).getlength(text) for text in LEGEND_ENTRIES]


def _draw_legend_entry(draw: ImageDraw.ImageDraw, entry: int, x: float, y: float, em: int) -> None:
    """Draws a mark and its text, from x to the right and centred at y."""
    if entry < 2:
        box = (x + 0.1 * em, y - 0.45 * em, x + em, y + 0.45 * em)
        draw.rectangle(box, outline=(PERSON_COLOUR, OBJECT_COLOUR)[entry], width=max(1, em // 6))
    else:
        draw.rounded_rectangle(
            (x, y - 0.55 * em, x + 1.1 * em, y + 0.55 * em), 0.25 * em, UNSEEN_COLOUR
        )
        draw.polygon(star_polygon(x + 0.55 * em, y, 0.48 * em), fill=BLACK)
    draw.text(
        (x + MARK_WIDTH * em, y), LEGEND_ENTRIES[entry], fill=WHITE, font=load_font(em), anchor="lm"
    )


def draw_annotation(
    image: Image.Image,
    annotation: Annotation,
    vocabulary: Vocabulary,
    unseen: Collection[int] = (),
    long_side: int | None = None,
) -> Image.Image:
    """Draws an annotation on its image.

    Args:
        image: small images are enlarged first.
        unseen: HOI indices to mark with a star.
        long_side: long side of the result in pixels; None for that of the image, at least 512.

    Returns:
        A new RGB image.
    """
    return _draw_interactions(image, annotation, vocabulary, unseen, None, None, long_side)


def draw_detections(
    image: Image.Image,
    detections: Detections,
    vocabulary: Vocabulary,
    unseen: Collection[int] = (),
    tp_mask: np.ndarray | None = None,
    long_side: int | None = None,
) -> Image.Image:
    """Draws detections with their scores on their image.

    Args:
        image: small images are enlarged first.
        detections: all K of them are drawn.
        unseen: HOI indices to mark with a star.
        tp_mask: (K,) bool, true positives; they are marked with a tick, the others with a cross.
            None for no marks.
        long_side: long side of the result in pixels; None for that of the image, at least 512.

    Returns:
        A new RGB image.
    """
    return _draw_interactions(
        image, detections, vocabulary, unseen, detections.scores, tp_mask, long_side
    )


def _draw_interactions(
    image: Image.Image,
    content: Annotation | Detections,
    vocabulary: Vocabulary,
    unseen: Collection[int],
    scores: np.ndarray | None,
    tp_mask: np.ndarray | None,
    long_side: int | None,
) -> Image.Image:
    long_side = long_side or max(MIN_LONG_SIDE, *image.size)
    scale = long_side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    resized = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    supersampling = SUPERSAMPLING if long_side <= MAX_SUPERSAMPLED else 1
    boxes = content.boxes.astype(np.float64) * scale * supersampling

    captions: dict[tuple[int, int], list[LabelLine]] = {}
    for row, (human, target_box, verb) in enumerate(content.hois.tolist()):
        label = content.labels[target_box] if target_box >= 0 else None
        name = vocabulary.verbs[verb] + ("" if label is None else f" {vocabulary.objects[label]}")
        score = "" if scores is None else f" {scores[row]:.2f}"
        interaction = -1 if label is None else vocabulary.interaction_ids[verb, label]
        line = LabelLine(
            name.replace("_", " ") + score,
            interaction in unseen,
            None if tp_mask is None else bool(tp_mask[row]),
        )
        captions.setdefault((human, target_box), []).append(line)

    canvas = Canvas(size, supersampling, list(captions.values()))
    for human, target_box in captions:
        if target_box >= 0:
            canvas.draw_link(boxes[human], boxes[target_box])
    for target_box in sorted({target for _, target in captions if target >= 0}):
        canvas.draw_box(boxes[target_box], OBJECT_COLOUR)
    for human in sorted({human for human, _ in captions}):
        canvas.draw_box(boxes[human], PERSON_COLOUR)
    canvas.draw_labels([(boxes[human], lines) for (human, _), lines in captions.items()], boxes)
    # For an integer factor, reduce() is much faster than resize().
    overlay = canvas.overlay.reduce(supersampling)
    return Image.alpha_composite(resized.convert("RGBA"), overlay).convert("RGB")
