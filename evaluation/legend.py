"""The lines below a drawn picture that say what its marks mean."""

from __future__ import annotations

from PIL import Image, ImageDraw

from evaluation.draw import (
    BLACK,
    OBJECT,
    PERSON,
    PLAIN,
    UNSEEN,
    WHITE,
    letter_size,
    load_font,
    star,
)

ENTRIES = ("person", "object", "unseen in training")
# Widths and heights in letter heights: a mark with its gap, the margin after an entry, a row.
MARK, MARGIN, ROW = 1.4, 0.8, 1.7
# Drawn larger and shrunk, so that slanted edges come out smooth.
SAMPLING = 2


def with_legend(picture: Image.Image) -> Image.Image:
    """Adds a strip below a drawn picture: the colours of people and objects, and the star.

    Returns:
        A new RGB picture, as wide and higher by the strip. In narrow pictures its entries stand
        one below the other, and letters shrink until the longest fits.
    """
    width = picture.width * SAMPLING
    em = round(0.85 * letter_size(picture.size, ())) * SAMPLING
    while em > 1 and max(_widths(em)) + MARGIN * em > width:
        em -= 1
    rows = _rows(em, width)
    strip = Image.new("RGB", (width, round((len(rows) + 0.2) * ROW * em)), PLAIN)
    for number, row in enumerate(rows):
        x = MARGIN * em
        for entry in row:
            _draw_entry(ImageDraw.Draw(strip), entry, x, (number + 0.6) * ROW * em, em)
            x += _widths(em)[entry] + MARGIN * em
    size = (picture.width, max(1, strip.height // SAMPLING))
    small = strip.resize(size, Image.Resampling.LANCZOS)
    both = Image.new("RGB", (picture.width, picture.height + small.height))
    both.paste(picture, (0, 0))
    both.paste(small, (0, picture.height))
    return both


def _rows(em: int, width: float) -> list[list[int]]:
    """The numbers of `ENTRIES` in rows that are no wider than the picture."""
    rows: list[list[int]] = []
    right = width
    for entry, own in enumerate(_widths(em)):
        if right + own + MARGIN * em > width:
            rows.append([])
            right = MARGIN * em
        rows[-1].append(entry)
        right += own + MARGIN * em
    return rows


def _widths(em: int) -> list[float]:
    return [MARK * em + load_font(em).getlength(text) for text in ENTRIES]


def _draw_entry(pen: ImageDraw.ImageDraw, entry: int, x: float, y: float, em: int) -> None:
    """A mark and its words, from x on and centred at y."""
    if entry < 2:
        box = (x + 0.1 * em, y - 0.45 * em, x + em, y + 0.45 * em)
        pen.rectangle(box, outline=(PERSON, OBJECT)[entry], width=max(1, em // 6))
    else:
        pen.rounded_rectangle((x, y - 0.55 * em, x + 1.1 * em, y + 0.55 * em), 0.25 * em, UNSEEN)
        pen.polygon(star(x + 0.55 * em, y, 0.48 * em), fill=BLACK)
    pen.text((x + MARK * em, y), ENTRIES[entry], fill=WHITE, font=load_font(em), anchor="lm")
