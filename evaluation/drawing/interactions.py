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
    tile_images,
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
    margins = MARK_WIDTH + ENTRY_MARGIN
    # In font sizes.
    widths = [margins + load_font(em).getlength(text) / em for text in LEGEND_ENTRIES]
    em = max(1, min(em, int(width / (max(widths) + ENTRY_MARGIN))))
    in_one_row = (sum(widths) + ENTRY_MARGIN) * em <= width
    num_rows = 1 if in_one_row else len(LEGEND_ENTRIES)
    strip = Image.new("RGB", (width, round((num_rows + 0.2) * ROW_HEIGHT * em)), LABEL_COLOUR)
    draw, x, y = ImageDraw.Draw(strip), ENTRY_MARGIN * em, 0.6 * ROW_HEIGHT * em
    for entry, text in enumerate(LEGEND_ENTRIES):
        if entry < 2:
            box = (x + 0.1 * em, y - 0.45 * em, x + em, y + 0.45 * em)
            colour = (PERSON_COLOUR, OBJECT_COLOUR)[entry]
            draw.rectangle(box, outline=colour, width=max(1, em // 6))
        else:
            box = (x, y - 0.55 * em, x + 1.1 * em, y + 0.55 * em)
            draw.rounded_rectangle(box, 0.25 * em, UNSEEN_COLOUR)
            draw.polygon(star_polygon(x + 0.55 * em, y, 0.48 * em), fill=BLACK)
        draw.text((x + MARK_WIDTH * em, y), text, fill=WHITE, font=load_font(em), anchor="lm")
        if in_one_row:
            x += widths[entry] * em
        else:
            y += ROW_HEIGHT * em
    size = (image.width, max(1, strip.height // SUPERSAMPLING))
    return tile_images([image, strip.resize(size, Image.Resampling.LANCZOS)], 1, 0, "black")


def draw_interactions(
    image: Image.Image,
    content: Annotation | Detections,
    vocabulary: Vocabulary,
    unseen: Collection[int] = (),
    tp_mask: np.ndarray | None = None,
    long_side: int | None = None,
) -> Image.Image:
    """Draws an annotation, or detections with their scores, on its image.

    Args:
        image: small images are enlarged first.
        content: all K interactions are drawn.
        unseen: HOI indices to mark with a star.
        tp_mask: (K,) bool, true positives; they are marked with a tick, the others with a cross.
            None for no marks.
        long_side: long side of the result in pixels; None for that of the image, at least 512.

    Returns:
        A new RGB image.
    """
    long_side = long_side or max(MIN_LONG_SIDE, *image.size)
    scale = long_side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    resized = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    supersampling = SUPERSAMPLING if long_side <= MAX_SUPERSAMPLED else 1
    boxes = content.boxes.astype(np.float64) * scale * supersampling

    captions: dict[tuple[int, int], list[LabelLine]] = {}
    for row, (human, target_box, verb) in enumerate(content.hois.tolist()):
        name, interaction = vocabulary.verbs[verb], -1
        if target_box >= 0:
            label = content.labels[target_box]
            name += f" {vocabulary.objects[label]}"
            interaction = vocabulary.interaction_ids[verb, label]
        name = name.replace("_", " ")
        if isinstance(content, Detections):
            name += f" {content.scores[row]:.2f}"
        correct = None if tp_mask is None else bool(tp_mask[row])
        line = LabelLine(name, interaction in unseen, correct)
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
