"""Writes the report: one self-contained HTML file, and its charts and test images as PNG files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from evaluation.analysis.comparison import compare
from evaluation.drawing.canvas import load_font, tile_images
from evaluation.hico.matching import Matches
from evaluation.report.charts.figure import Chart, require_packages
from evaluation.report.charts.palette import LIGHT
from evaluation.report.gallery import GalleryItem, GalleryRow
from evaluation.report.inputs import find_dataset, load_report_inputs
from evaluation.report.page import build_page
from evaluation.results import RESULTS_FILE, Results, read_results
from pipeline.datasets.dataset import Dataset
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import atomic_write, read_json, refuse_existing, write_json, write_text
from pipeline.vocabulary import BUILTIN_VOCABULARIES, Vocabulary, load_vocabulary

# Name of the report on one evaluation, beside its results file.
REPORT_FILE = "report.html"
# List of the PNG files in their folder.
INDEX_FILE = "pictures.json"
# In pixels.
GAP, TITLE_SIZE = 12, 16
# Higher zlib levels take twice the time for 20 % smaller files.
PNG_COMPRESS_LEVEL = 2


def write_report(
    files: Sequence[Path],
    out: Path,
    png: Path | None = None,
    data: Path | None = None,
    overwrite: bool = False,
    matches: Matches | None = None,
) -> Path:
    """Writes the report.

    Files that the results refer to and that do not exist (training log, predictions, images of the
    dataset) are left out, and the page says so.

    Args:
        files: results files, or run folders with `results.json`, in any order.
        out: HTML file to write.
        png: folder for the PNG files; None for one beside the HTML file, named after it.
        data: dataset folder, in place of the one in the results.
        overwrite: replace an existing HTML file and PNG files.
        matches: those of the only results file, so that its predictions are not read and matched
            again.

    Returns:
        the folder of the PNG files.

    Raises:
        InputError: a package of the extra `report` is not installed, a file is invalid, the
            results cannot be compared, or the HTML file or the folder exists.
    """
    require_packages("a report", "jinja2", "matplotlib")
    png = png or out.with_name(f"{out.stem}-pictures")
    refuse_existing(out, overwrite)
    refuse_existing(png, overwrite)
    results = [read_results(path / RESULTS_FILE if path.is_dir() else path) for path in files]
    if matches is not None:
        results = [replace(result, matches=matches) for result in results]
    dataset = find_dataset(results, data)
    comparison = compare(results, _load_vocabulary(results, dataset))
    page = build_page(comparison, load_report_inputs(comparison, dataset))
    write_images(png, page.charts, page.gallery_rows)
    write_text(out, page.html)
    return png


def write_report_beside(file: Path, overwrite: bool = True, matches: Matches | None = None) -> str:
    """Writes a report on one evaluation beside its results file.

    The evaluation is complete without its report, so errors are returned instead of raised.

    Args:
        matches: see `write_report`.

    Returns:
        a line with the path of the report, or with the reason why there is none.
    """
    out = file.with_name(REPORT_FILE)
    try:
        write_report([file], out, overwrite=overwrite, matches=matches)
    except InputError as error:
        return f"no report: {error}"
    return f"report: {out}"


def _load_vocabulary(results: Sequence[Results], dataset: Dataset | None) -> Vocabulary:
    """The vocabulary of the results.

    Raises:
        InputError: the dataset has another vocabulary than the results, or the vocabulary is in
            a dataset that does not exist.
    """
    first = results[0]
    if dataset is not None:
        vocabulary = dataset.vocabulary
        if vocabulary.name != first.vocabulary:
            expected = f"the dataset's, {vocabulary.name}"
            raise bad_field(first.name, "vocabulary", expected, first.vocabulary)
    elif first.vocabulary in BUILTIN_VOCABULARIES:
        vocabulary = load_vocabulary(first.vocabulary)
    else:
        expected = f"the dataset that defines vocabulary {first.vocabulary}"
        raise bad_field(first.name, "dataset_path", expected, first.dataset_path)
    for result in results:
        unknown = [i for i in result.unseen if not 0 <= i < vocabulary.num_interactions]
        if unknown:
            expected = f"interactions of {vocabulary.name}, 0 to {vocabulary.num_interactions - 1}"
            raise bad_field(result.name, "unseen", expected, unknown[0])
    return vocabulary


def write_images(folder: Path, charts: Sequence[Chart], gallery_rows: Sequence[GalleryRow]) -> None:
    """Writes every chart and every gallery item as a PNG file, and their list, `pictures.json`.

    The list has file, title and description of each. PNG files of an earlier report in the folder
    are removed; other files are kept.
    """
    with suppress(InputError, TypeError, KeyError):
        for entry in read_json(folder / INDEX_FILE):
            # The list may have been edited: only PNG files directly in the folder are removed.
            file = folder / Path(entry["file"]).name
            if file.suffix == ".png":
                file.unlink(missing_ok=True)
    files = {f"{chart.name}.png": (chart.title, chart.alt, chart.png) for chart in charts}
    items = [
        (gallery_row.title, item) for gallery_row in gallery_rows for item in gallery_row.items
    ]
    for number, (title, item) in enumerate(items, start=1):
        description = ". ".join(image.alt for image in item.images)
        files[f"picture-{number:02}.png"] = (title, f"{description}.", draw_item(item))
    for name, (_, _, content) in files.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_bytes(content)
    write_json(
        folder / INDEX_FILE,
        [
            {"file": name, "title": title, "description": description}
            for name, (title, description, _) in files.items()
        ],
    )


def draw_item(item: GalleryItem) -> bytes:
    """The drawings of a test image in a row, each below its title, as the content of a PNG file."""
    font = load_font(TITLE_SIZE)
    titled = []
    for drawing in item.images:
        title = Image.new("RGB", (drawing.image.width, TITLE_SIZE + GAP), LIGHT["card"])
        text = f"{drawing.title}, {drawing.note}" if drawing.note else drawing.title
        middle = (0, title.height / 2)
        ImageDraw.Draw(title).text(middle, text, fill=LIGHT["text"], font=font, anchor="lm")
        titled.append(tile_images([title, drawing.image], 1, 0, LIGHT["card"]))
    sheet = ImageOps.expand(
        tile_images(titled, len(titled), GAP, LIGHT["card"]), GAP, LIGHT["card"]
    )
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", compress_level=PNG_COMPRESS_LEVEL)
    return buffer.getvalue()
