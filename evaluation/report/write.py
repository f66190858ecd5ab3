"""One self-contained HTML page from several results, and its pictures as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageDraw

from evaluation.analysis.comparison import compare
from evaluation.drawing.canvas import load_font
from evaluation.report.charts.figure import Chart, require
from evaluation.report.charts.palette import LIGHT
from evaluation.report.gallery import Card, Shelf
from evaluation.report.inputs import gather_evidence
from evaluation.report.page import build_page
from evaluation.results import Results, read_results
from pipeline.datasets.dataset import open_dataset
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import read_json, refuse_existing, replacing, write_json, write_text
from pipeline.vocabulary import SHIPPED, Vocabulary, load_vocabulary

REPORT = "report.html"


@dataclass(frozen=True)
class ReportConfig:
    """What to report on, and where.

    Attributes:
        results: results files in any order.
        out: the HTML file.
        png: folder for the pictures as PNG files; None takes one beside the HTML file, named
            after it.
        data: the dataset folder, where it is not where the results say.
        overwrite: replace an HTML file and pictures that are there.
    """

    results: tuple[Path, ...]
    out: Path
    png: Path | None = None
    data: Path | None = None
    overwrite: bool = False

    @property
    def pictures(self) -> Path:
        """Folder for the PNG files."""
        return self.png or self.out.with_name(f"{self.out.stem}-pictures")


def write_report(config: ReportConfig, known: Results | None = None) -> None:
    """Writes the report.

    Args:
        known: what stands in the only results file, with the matches that it was scored by.

    What results point at and what is no longer there (the training log, the predictions, the
    dataset's pictures) is left out, and the page says so.

    Raises:
        InputError: a package of the extra `report` is missing, a file is wrong, the results do
            not belong together, or the HTML file or the folder is there already.
    """
    require("a report", "jinja2", "matplotlib")
    refuse_existing(config.out, config.overwrite)
    refuse_existing(config.pictures, config.overwrite)
    results = [read_results(path) for path in config.results]
    if known is not None:
        (own,) = results
        results = [replace(own, matches=known.matches)]
    comparison = compare(results, _vocabulary(results, config.data))
    evidence = gather_evidence(comparison, config.data)
    page = build_page(comparison, evidence)
    write_pictures(config.pictures, page.charts, page.shelves)
    write_text(config.out, page.html)


def report_beside(results: Path, overwrite: bool = True, known: Results | None = None) -> str:
    """Writes a report on one evaluation beside its results file.

    An evaluation is worth having without its report, so nothing is raised.

    Args:
        known: see `write_report`.

    Returns:
        a line that says where the report is, or why there is none.
    """
    config = ReportConfig((results,), results.with_name(REPORT), overwrite=overwrite)
    try:
        write_report(config, known)
    except InputError as error:
        return f"no report: {error}"
    return f"report: {config.out}"


def _vocabulary(results: Sequence[Results], data: Path | None) -> Vocabulary:
    """The vocabulary of the results' dataset.

    Raises:
        InputError: the dataset has another vocabulary than the results, or there is none.
    """
    first = results[0]
    folders = [data, *(result.dataset_path for result in results)]
    folder = next((path for path in folders if path is not None and path.is_dir()), None)
    if data is not None or folder is not None:
        vocabulary = open_dataset(data or folder or "").vocabulary
        if vocabulary.name != first.vocabulary:
            expected = f"the dataset's, {vocabulary.name}"
            raise bad_field(first.name, "vocabulary", expected, first.vocabulary)
    elif first.vocabulary in SHIPPED:
        vocabulary = load_vocabulary(first.vocabulary)
    else:
        raise InputError(
            f"{first.name}: expected the dataset that defines vocabulary {first.vocabulary},"
            f" found none at {first.dataset_path}"
        )
    for result in results:
        unknown = [one for one in result.unseen if not 0 <= one < vocabulary.num_interactions]
        if unknown:
            expected = f"interactions of {vocabulary.name}, 0 to {vocabulary.num_interactions - 1}"
            raise bad_field(result.name, "unseen", expected, unknown[0])
    return vocabulary


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
