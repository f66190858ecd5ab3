"""Draws an annotation or detections on an image, and the legend below."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from evaluation.drawing.canvas import (
    BLACK,
    LABEL_COLOUR,
    MIN_FONT_SIZE,
    PAIR_COLOURS,
    SUPERSAMPLING,
    UNSEEN_COLOUR,
    WHITE,
    Colour,
    Label,
    LabelLine,
    add_margin,
    draw_labelled_pairs,
    fit_labels,
    font_size,
    least_size,
    load_font,
    star_polygon,
    tile_images,
)
from pipeline.boxes import box_iou
from pipeline.types import Annotation, Detections
from pipeline.vocabulary import Vocabulary

# Entries of legends: the marks at the ends of links, whose colours are the pairs', the star of
# labels, and the thin box around a pair.
PERSON, OBJECT, UNSEEN = "person", "object", "unseen in training"
REGION = "region for the teacher"
# In font sizes: width of a mark and its gap, margin after an entry, height of a row.
MARK_WIDTH, ENTRY_MARGIN, ROW_HEIGHT = 1.4, 0.8, 1.7
# In pixels: least long side of a drawing; and least short side, if necessary with a margin, but at
# most a third of the long side.
MIN_LONG_SIDE, MIN_SHORT_SIDE = 512, 192
# Detected people with this IoU are drawn as one, and so are objects, whatever their classes.
# Pairwise NMS leaves no verb and class twice on a pair of such boxes.
SAME_BOX_IOU = 0.85


def add_legend(
    image: Image.Image, entries: Sequence[str] = (PERSON, OBJECT, UNSEEN)
) -> Image.Image:
    """Adds a strip below a drawing, which explains its marks.

    Marks of people and objects are white: in the drawing they have the colour of their pair.

    Returns:
        A new RGB image, higher by the strip. In narrow images the entries are below each other, and
        the font shrinks until the longest one fits.
    """
    width = image.width * SUPERSAMPLING
    em = round(0.85 * font_size(image.size)) * SUPERSAMPLING
    margins = MARK_WIDTH + ENTRY_MARGIN
    # In font sizes.
    widths = [margins + load_font(em).getlength(text) / em for text in entries]
    em = max(1, min(em, int(width / (max(widths) + ENTRY_MARGIN))))
    in_one_row = (sum(widths) + ENTRY_MARGIN) * em <= width
    num_rows = 1 if in_one_row else len(entries)
    strip = Image.new("RGB", (width, round((num_rows + 0.2) * ROW_HEIGHT * em)), LABEL_COLOUR)
    draw, x, y = ImageDraw.Draw(strip), ENTRY_MARGIN * em, 0.6 * ROW_HEIGHT * em
    for text, entry_width in zip(entries, widths, strict=True):
        _draw_legend_mark(draw, text, x, y, em)
        draw.text((x + MARK_WIDTH * em, y), text, fill=WHITE, font=load_font(em), anchor="lm")
        if in_one_row:
            x += entry_width * em
        else:
            y += ROW_HEIGHT * em
    size = (image.width, max(1, strip.height // SUPERSAMPLING))
    return tile_images([image, strip.resize(size, Image.Resampling.LANCZOS)], 1, 0, "black")


def _draw_legend_mark(draw: ImageDraw.ImageDraw, entry: str, x: float, y: float, em: int) -> None:
    """Draws the mark of an entry, with its left end at x and its middle at y."""
    small = (x + 0.2 * em, y - 0.35 * em, x + 0.9 * em, y + 0.35 * em)
    large = (x, y - 0.55 * em, x + 1.1 * em, y + 0.55 * em)
    if entry == UNSEEN:
        draw.rounded_rectangle(large, 0.25 * em, UNSEEN_COLOUR)
        draw.polygon(star_polygon(x + 0.55 * em, y, 0.48 * em), fill=BLACK)
    elif entry == REGION:
        # Pillow 10.1 cannot draw tiny rounded rectangles without a filling.
        draw.rectangle(large, outline=WHITE, width=max(1, round(0.1 * em)))
    else:
        (draw.ellipse if entry == PERSON else draw.rectangle)(small, fill=WHITE)


def draw_interactions(
    image: Image.Image,
    content: Annotation | Detections,
    vocabulary: Vocabulary,
    unseen: Collection[int] = (),
    tp_mask: np.ndarray | None = None,
    long_side: int | None = None,
) -> Image.Image:
    """Draws an annotation, or detections with their scores, on its image.

    Every pair has its own colour. At most 15 pairs are drawn, fewer if they have no room; those
    with the lowest scores are left out, and their number is written.

    Args:
        image: small images are enlarged first.
        content: K interactions.
        unseen: HOI indices to mark with a star.
        tp_mask: (K,) bool, true positives; they are marked with a tick, the others with a cross.
            None for no marks.
        long_side: long side of the result in pixels; None for that of the image, at least 512.

    Returns:
        A new RGB image. Very narrow images get a margin, in which labels have room.
    """
    long_side = long_side or max(MIN_LONG_SIDE, *image.size)
    scale = long_side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    drawing = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    captions = _caption_pairs(content, vocabulary, unseen, tp_mask)
    if not captions:
        return drawing
    largest = np.ceil(least_size(list(captions.values()), MIN_FONT_SIZE))
    least = np.maximum(largest, min(MIN_SHORT_SIDE, long_side / 3))
    drawing, offset = add_margin(drawing, least.astype(int).tolist())
    boxes = content.boxes.astype(np.float64) * scale + offset
    return _draw_captions(drawing, captions, boxes, content.labels == vocabulary.person)


def draw_tracked(
    frame: Image.Image,
    content: Detections,
    vocabulary: Vocabulary,
    unseen: Collection[int],
    ids: np.ndarray,
    colours: Mapping[tuple[int, int], Colour],
    size: tuple[int, int],
) -> Image.Image:
    """Draws tracked detections on a frame of a video, in the same size for all frames.

    The first line of a pair's label is its id: "person 3, bicycle 5".

    Args:
        frame: the upright frame.
        content: K interactions.
        unseen: HOI indices to mark with a star.
        ids: (N,) id of every box, counted for people and for objects.
        colours: colour of every pair of rows of the boxes, as in `content.hois`.
        size: (width, height) of the result in pixels.

    Returns:
        A new RGB image.
    """
    drawing = frame.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    captions = _caption_pairs(content, vocabulary, unseen, None, merge=False)
    if not captions:
        return drawing
    names = [
        f"{vocabulary.objects[label]} {number}".replace("_", " ")
        for label, number in zip(content.labels.tolist(), ids.tolist(), strict=True)
    ]
    for pair, lines in captions.items():
        lines.insert(0, LabelLine(", ".join(names[row] for row in pair if row >= 0)))
    boxes = content.boxes * np.tile(np.divide(size, frame.size), 2)
    return _draw_captions(drawing, captions, boxes, content.labels == vocabulary.person, colours)


def _draw_captions(
    drawing: Image.Image,
    captions: Mapping[tuple[int, int], list[LabelLine]],
    boxes: np.ndarray,
    is_person: np.ndarray,
    colours: Mapping[tuple[int, int], Colour] | None = None,
) -> Image.Image:
    """Draws pairs of rows of (N, 4) boxes in pixels of the drawing, the best first. Without
    `colours`, they have those of `PAIR_COLOURS` from left to right."""
    em, num_drawn = fit_labels(list(captions.values()), drawing.size)
    rows_by_pair = {pair: [row for row in pair if row >= 0] for pair in list(captions)[:num_drawn]}
    # From left to right, so that pairs mostly have the same colours in the ground truth and in the
    # detections of all models.
    pairs = sorted(rows_by_pair, key=lambda pair: boxes[rows_by_pair[pair], ::2].sum(1).tolist())
    colours = colours or dict(zip(pairs, PAIR_COLOURS, strict=False))
    labels = [Label(captions[pair], boxes[rows_by_pair[pair]], colours[pair]) for pair in pairs]
    return draw_labelled_pairs(drawing, labels, boxes, boxes[is_person], em, len(captions))


def _caption_pairs(
    content: Annotation | Detections,
    vocabulary: Vocabulary,
    unseen: Collection[int],
    tp_mask: np.ndarray | None,
    merge: bool = True,
) -> dict[tuple[int, int], list[LabelLine]]:
    """Label of every pair of rows of the boxes; the object is -1 for a verb without object. The
    best-scoring pair comes first. With `merge`, detected boxes that are nearly the same are one."""
    order, same = np.arange(len(content.hois)), np.arange(len(content.boxes))
    if isinstance(content, Detections):
        order = np.argsort(-content.scores, kind="stable")
    if isinstance(content, Detections) and merge:
        used = list(dict.fromkeys(content.hois[order, :2][content.hois[order, :2] >= 0].tolist()))
        is_same = box_iou(content.boxes, content.boxes) >= SAME_BOX_IOU
        is_person = content.labels == vocabulary.person
        is_same &= is_person[:, None] == is_person
        for place, row in enumerate(used):
            same[row] = next((first for first in used[:place] if is_same[row, first]), row)
    captions: dict[tuple[int, int], list[LabelLine]] = {}
    for row in order.tolist():
        human, target, verb = content.hois[row].tolist()
        name, interaction = vocabulary.verbs[verb], -1
        if target >= 0:
            label = content.labels[target]
            name += f" {vocabulary.objects[label]}"
            interaction = vocabulary.interaction_ids[verb, label]
            target = int(same[target])
        name = name.replace("_", " ")
        if isinstance(content, Detections):
            name += f" {content.scores[row]:.2f}"
        correct = None if tp_mask is None else bool(tp_mask[row])
        line = LabelLine(name, interaction in unseen, correct)
        captions.setdefault((int(same[human]), target), []).append(line)
    return captions
