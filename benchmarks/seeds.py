"""Runs the demo for several seeds and prints a table per split."""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.demo import run_demo
from pipeline.utils.files import write_json

COLUMNS = (
    ("distilled", "seen"),
    ("distilled", "unseen"),
    ("no_distillation", "seen"),
    ("no_distillation", "unseen"),
    ("all_labels", "unseen"),
    ("teacher", "unseen"),
    ("teacher", "teacher_accuracy"),
    ("teacher", "person_recall"),
    ("teacher", "object_recall"),
)


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table of demo results, with a row of means."""
    columns = [(name, field) for name, field in COLUMNS if all(name in row for row in rows)]
    shared = ["gap_closed"] if all("gap_closed" in row for row in rows) else []
    values = [[100 * row[name][field] for name, field in columns] for row in rows]
    gaps = [[row[name] for name in shared] for row in rows]
    titles = [f"{name} {field}".replace("_", " ").replace("teacher teacher", "teacher")
              for name, field in columns]  # fmt: skip
    lines = ["| seed | " + " | ".join([*titles, *["gap closed"] * len(shared)]) + " | seconds |"]
    lines.append("|" + "---|" * (len(titles) + len(shared) + 2))
    for row, numbers, gap in zip(rows, values, gaps, strict=True):
        cells = [*(f"{x:.1f}" for x in numbers), *(f"{x:.2f}" for x in gap)]
        lines.append(f"| {row['seed']} | " + " | ".join(cells) + f" | {row['seconds']:.0f} |")
    means = [f"{mean(x):.1f}" for x in zip(*values, strict=True)]
    means += [f"{mean(x):.2f}" for x in zip(*gaps, strict=True)]
    seconds = mean(row["seconds"] for row in rows)
    lines.append("| mean | " + " | ".join(means) + f" | {seconds:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--splits", nargs="+", default=["ua", "uc"])
    options = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {split: [] for split in options.splits}
    for seed in options.seeds:
        for split in options.splits:
            result = run_demo(options.out, split, seed, ceiling=True)
            write_json(options.out / f"seed-{seed}-{split}.json", result)
            found[split].append(result)
    for split, rows in found.items():
        print(f"\n{split}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
