"""Writes what the study has found so far: a table and a figure each, and one page of all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.study.experiment import Experiment
from benchmarks.study.figures import draw_experiment
from benchmarks.study.pieces import BATCH, EPOCHS, LABELLED
from benchmarks.study.records import Records
from benchmarks.study.tables import markdown, measure
from benchmarks.study.workshop import Workshop
from pipeline.utils.files import read_json, read_toml, write_json, write_text

PAGE = "README.md"
# What people made of the numbers, and of which seeds.
FINDINGS = Path(__file__).parent / "findings.toml"
HEAD = f"""\
# What the study found

mAP in percent on the toy dataset's 500 test pictures, mean ± standard deviation over seeds;
dataset, teacher, detector and student are made anew for every seed. "Against" is the difference of
unseen mAP to another row, seed by seed.

Students are smaller than the demo's, to be many: {LABELLED} training pictures instead of 3,000,
{EPOCHS} epochs in batches of {BATCH} unless a title says more. They end some 15 points below the
demo's. A dataset of drawn figures says nothing about photographs; what it shows is which choices
matter when all else is equal, and with three seeds only differences well beyond the spread are
worth believing. Batch and learning rate were chosen among a few on seed 0, which is below; seed
100, which is not, says the same.

`make study` makes this page; numbers that stand here are not measured again.
"""


def write_experiment(
    experiment: Experiment, workshops: Sequence[Workshop], folder: Path, records: Records
) -> dict[str, Any] | None:
    """Writes an experiment's `NAME.json` and `NAME.png`, unless nothing of it is there.

    Args:
        experiment: which one.
        workshops: one for every seed.
        folder: for the files.
        records: what was measured before.

    Returns:
        The numbers, None for none.
    """
    measured = measure(experiment, workshops, records)
    if not any(row["values"] for row in measured["rows"]):
        return None
    file = folder / f"{experiment.name}.json"
    # A picture is only drawn anew when its numbers are new: its bytes depend on matplotlib too.
    if not file.is_file() or read_json(file) != measured:
        write_json(file, measured)
        draw_experiment(folder / f"{experiment.name}.png", measured)
    return measured


def write_page(experiments: Sequence[Experiment], folder: Path) -> None:
    """Writes one page of all numbers in the folder: the experiments' first, in their order, then
    those of experiments that were."""
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
    """Whether every row has the numbers of just these seeds."""
    wanted = set(map(str, seeds))
    return all(row["values"].get("full", {}).keys() == wanted for row in measured["rows"])
