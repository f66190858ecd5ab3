"""The report's pictures as PNG files in a folder, with a list of what they show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from evaluation.charts import Chart
from evaluation.draw import load_font
from evaluation.gallery import Card, Shelf
from evaluation.palette import LIGHT
from pipeline.errors import InputError
from pipeline.files import read_json, replacing, write_json

INDEX = "pictures.json"
GAP, TEXT = 12, 16
# Of zlib; more of it takes twice the time for a fifth fewer bytes.
PNG_EFFORT = 2


def write_pictures(folder: Path, charts: Sequence[Chart], shelves: Sequence[Shelf]) -> None:
    """Writes every chart and every test picture with its views side by side, and
    `pictures.json`: file, title and description of each.

    Pictures that an earlier report left in the folder go; other files stay.
    """
    _clear(folder)
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for chart in charts:
        file = f"{chart.name}.png"
        with replacing(folder / file) as temporary:
            temporary.write_bytes(chart.png)
        entries.append({"file": file, "title": chart.title, "description": chart.alt})
    drawn = [(shelf.title, card) for shelf in shelves for card in shelf.cards]
    for number, (title, card) in enumerate(drawn, start=1):
        file = f"picture-{number:02}.png"
        with replacing(folder / file) as temporary:
            side_by_side(card).save(temporary, "PNG", compress_level=PNG_EFFORT)
        said = ". ".join(picture.alt for picture in card.pictures)
        entries.append({"file": file, "title": title, "description": f"{said}."})
    write_json(folder / INDEX, entries)


def side_by_side(card: Card) -> Image.Image:
    """The views of a test picture in a row, each under its title."""
    font = load_font(TEXT)
    room = TEXT + GAP
    width = sum(picture.image.width for picture in card.pictures)
    width += GAP * (len(card.pictures) + 1)
    height = max(picture.image.height for picture in card.pictures) + room + GAP
    sheet = Image.new("RGB", (width, height), LIGHT["card"])
    pen, left = ImageDraw.Draw(sheet), GAP
    for picture in card.pictures:
        title = f"{picture.title}, {picture.note}" if picture.note else picture.title
        pen.text((left, room / 2), title, fill=LIGHT["ink"], font=font, anchor="lm")
        sheet.paste(picture.image, (left, room))
        left += picture.image.width + GAP
    return sheet


def _clear(folder: Path) -> None:
    """Removes what an earlier report wrote."""
    index = folder / INDEX
    if not index.is_file():
        return
    try:
        entries = read_json(index)
    except InputError:
        return
    for entry in entries if isinstance(entries, list) else []:
        name = entry.get("file") if isinstance(entry, dict) else None
        # Nothing outside the folder, whatever the file says.
        if isinstance(name, str) and Path(name).name == name and name.endswith(".png"):
            (folder / name).unlink(missing_ok=True)
    index.unlink()
