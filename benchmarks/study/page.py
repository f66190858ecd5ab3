"""Writes the results of the study: a table and a figure per experiment, and a page of all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.study.artifacts import BATCH, EPOCHS, LABELLED
from benchmarks.study.experiment import Experiment
from benchmarks.study.figures import draw_experiment
from benchmarks.study.records import Records
from benchmarks.study.runner import SeedRunner
from benchmarks.study.tables import markdown, measure
from pipeline.utils.files import read_json, read_toml, write_json, write_text

PAGE = "README.md"
# Interpretation of the results, and the seeds that it is valid for.
FINDINGS = Path(__file__).parent / "findings.toml"
HEAD = f"""\
# Results of the study

The tables have mAP in percent on the toy dataset's 500 test images, as mean ± standard deviation
over seeds. Dataset, teacher, detector and student are generated anew for every seed. "Against" is
the difference in unseen mAP to another row, computed per seed.

To allow for many runs, the students are trained less than in the demo: on {LABELLED} images
instead of 3,000, for {EPOCHS} epochs with a batch size of {BATCH} unless a title states otherwise.
Their mAP is about 15 points lower. The toy dataset consists of drawings, so the values do not
transfer to photographs. They show which choices matter when everything else is equal. With three
seeds, only differences well beyond the spread are reliable. Batch size and learning rate were
selected from a few values on seed 0, which is one of the seeds below; seed 100, which is not,
gives the same selection.

`make study` writes this page and does not repeat runs whose results are recorded here.
"""


def write_experiment(
    experiment: Experiment, runners: Sequence[SeedRunner], folder: Path, records: Records
) -> dict[str, Any] | None:
    """Writes `NAME.json` and `NAME.png` of an experiment if it has results.

    Args:
        experiment: the experiment.
        runners: one per seed.
        folder: folder of the files.
        records: recorded results.

    Returns:
        The results; None if there are none.
    """
    measured = measure(experiment, runners, records)
    if not any(row["values"] for row in measured["rows"]):
        return None
    file = folder / f"{experiment.name}.json"
    # An unchanged figure is not drawn anew, because its bytes depend on matplotlib's version.
    if not file.is_file() or read_json(file) != measured:
        write_json(file, measured)
        draw_experiment(folder / f"{experiment.name}.png", measured)
    return measured


def write_page(experiments: Sequence[Experiment], folder: Path) -> None:
    """Writes a page of all results in the folder: those of `experiments` in their order, then those
    of experiments that have been removed."""
    files = {file.stem: file for file in sorted(folder.glob("*.json"))}
    now = [files.pop(each.name) for each in experiments if each.name in files]
    findings = read_toml(FINDINGS)
    sections = [_section(read_json(file), findings) for file in (*now, *files.values())]
    write_text(folder / PAGE, "\n".join([HEAD, *sections]))


def _section(measured: dict[str, Any], findings: dict[str, Any]) -> str:
    found = findings["found"].get(measured["name"])
    seeds = ", ".join(map(str, measured["seeds"]))
    rows = measured["rows"]
    missing = [row["label"] for row in rows if len(row["values"].get("full", {})) == 0]
    lines = [
        f"## {measured['title']}\n",
        f"{markdown(measured)}\n",
        f"![{measured['title']}]({measured['name']}.png)\n",
        f"*The paper.* {measured['paper']}\n",
        *([f"*The toy dataset.* {found}\n"] if found and _has(measured, findings["seeds"]) else []),
        f"Seeds {seeds}." + (f" Not run yet: {'; '.join(missing)}." if missing else "") + "\n",
    ]
    return "\n".join(lines)


def _has(measured: dict[str, Any], seeds: Sequence[int]) -> bool:
    """Whether every row has results of exactly these seeds."""
    wanted = set(map(str, seeds))
    return all(row["values"].get("full", {}).keys() == wanted for row in measured["rows"])
