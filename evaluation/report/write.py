"""One self-contained HTML page from several results, and its pictures as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageDraw

from evaluation.analysis.comparison import compare
from evaluation.drawing.canvas import load_font
from evaluation.report.charts.figure import Chart, require_packages
from evaluation.report.charts.palette import LIGHT
from evaluation.report.gallery import GalleryItem, GalleryRow
from evaluation.report.inputs import load_report_inputs
from evaluation.report.page import build_page
from evaluation.results import Results, read_results
from pipeline.datasets.dataset import open_dataset
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import atomic_write, read_json, refuse_existing, write_json, write_text
from pipeline.vocabulary import BUILTIN_VOCABULARIES, Vocabulary, load_vocabulary

REPORT_FILE = "report.html"


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
    def image_folder(self) -> Path:
        """Folder for the PNG files."""
        return self.png or self.out.with_name(f"{self.out.stem}-pictures")


def write_report(config: ReportConfig, results_with_matches: Results | None = None) -> None:
    """Writes the report.

    Args:
        results_with_matches: what stands in the only results file, with its matches.

    What results point at and what is no longer there (the training log, the predictions, the
    dataset's pictures) is left out, and the page says so.

    Raises:
        InputError: a package of the extra `report` is missing, a file is wrong, the results do
            not belong together, or the HTML file or the folder is there already.
    """
    require_packages("a report", "jinja2", "matplotlib")
    refuse_existing(config.out, config.overwrite)
    refuse_existing(config.image_folder, config.overwrite)
    results = [read_results(path) for path in config.results]
    if results_with_matches is not None:
        (own,) = results
        results = [replace(own, matches=results_with_matches.matches)]
    comparison = compare(results, _load_vocabulary(results, config.data))
    inputs = load_report_inputs(comparison, config.data)
    page = build_page(comparison, inputs)
    write_images(config.image_folder, page.charts, page.gallery_rows)
    write_text(config.out, page.html)


def write_report_beside(
    results: Path, overwrite: bool = True, results_with_matches: Results | None = None
) -> str:
    """Writes a report on one evaluation beside its results file.

    An evaluation is worth having without its report, so nothing is raised.

    Args:
        results_with_matches: see `write_report`.

    Returns:
        a line that says where the report is, or why there is none.
    """
    config = ReportConfig((results,), results.with_name(REPORT_FILE), overwrite=overwrite)
    try:
        write_report(config, results_with_matches)
    except InputError as error:
        return f"no report: {error}"
    return f"report: {config.out}"


def _load_vocabulary(results: Sequence[Results], data: Path | None) -> Vocabulary:
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
    elif first.vocabulary in BUILTIN_VOCABULARIES:
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


INDEX_FILE = "pictures.json"
ITEM_GAP, TITLE_SIZE = 12, 16
# Of zlib; more of it takes twice the time for a fifth fewer bytes.
PNG_COMPRESS_LEVEL = 2


def write_images(folder: Path, charts: Sequence[Chart], gallery_rows: Sequence[GalleryRow]) -> None:
    """Writes every chart and every test picture with its views side by side, and
    `pictures.json`: file, title and description of each.

    Pictures that an earlier report left in the folder go; other files stay.
    """
    _remove_previous_images(folder)
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for chart in charts:
        file = f"{chart.name}.png"
        with atomic_write(folder / file) as temporary:
            temporary.write_bytes(chart.png)
        entries.append({"file": file, "title": chart.title, "description": chart.alt})
    drawn = [
        (gallery_row.title, item) for gallery_row in gallery_rows for item in gallery_row.items
    ]
    for number, (title, item) in enumerate(drawn, start=1):
        file = f"picture-{number:02}.png"
        with atomic_write(folder / file) as temporary:
            draw_item(item).save(temporary, "PNG", compress_level=PNG_COMPRESS_LEVEL)
        said = ". ".join(picture.alt for picture in item.images)
        entries.append({"file": file, "title": title, "description": f"{said}."})
    write_json(folder / INDEX_FILE, entries)


def draw_item(item: GalleryItem) -> Image.Image:
    """The views of a test picture in a row, each under its title."""
    font = load_font(TITLE_SIZE)
    room = TITLE_SIZE + ITEM_GAP
    width = sum(picture.image.width for picture in item.images)
    width += ITEM_GAP * (len(item.images) + 1)
    height = max(picture.image.height for picture in item.images) + room + ITEM_GAP
    sheet = Image.new("RGB", (width, height), LIGHT["card"])
    pen, left = ImageDraw.Draw(sheet), ITEM_GAP
    for picture in item.images:
        title = f"{picture.title}, {picture.note}" if picture.note else picture.title
        pen.text((left, room / 2), title, fill=LIGHT["text"], font=font, anchor="lm")
        sheet.paste(picture.image, (left, room))
        left += picture.image.width + ITEM_GAP
    return sheet


def _remove_previous_images(folder: Path) -> None:
    """Removes what an earlier report wrote."""
    index = folder / INDEX_FILE
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
