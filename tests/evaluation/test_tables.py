from dataclasses import replace

import pytest

from evaluation.hico.average_precision import evaluate
from evaluation.results import Results, build_setting_scores, results_fields
from evaluation.tables import (
    format_detail_table,
    format_results_table,
)


def test_table(distilled):
    known = replace(distilled, setting="known_object", metrics={**distilled.metrics, "rare": None})
    lines = format_results_table([distilled, known])
    assert lines[0] == "toy, split ua: 10 images, 50 interactions"
    assert "default setting" in lines[1]
    assert [line.split() for line in lines[2:]] == [
        ["full", "40.00", "40.00"],
        ["seen", "55.00", "55.00"],
        ["unseen", "70.12", "70.12"],
        ["harmonic", "mean", "40.00", "40.00"],
        ["rare", "40.00", "-"],
        ["non-rare", "40.00", "40.00"],
        ["max", "recall", "40.00", "40.00"],
    ]


def test_table_without_labels(distilled):
    (line,) = format_results_table(
        [replace(distilled, metrics=dict.fromkeys(distilled.metrics), per_class={})]
    )
    assert "0 interactions" in line and "no scores" in line


@pytest.fixture
def results(toy, annotate, detect):
    truth = [
        annotate("a.jpg", ("kick", "ball"), ("hold", "ball")),
        annotate("b.jpg", ("ride", "bike")),
    ]
    found = [detect("a.jpg", ("kick", "ball", 0.9)), detect("b.jpg", ("kick", "ball", 0.95))]
    known = evaluate(truth, found, toy, "known_object")
    return Results(
        name="mine",
        kind="predictions",
        dataset="toy",
        split="full",
        setting="default",
        num_images=2,
        known_object=build_setting_scores(known, toy, ()),
        **results_fields(evaluate(truth, found, toy), toy, ()),
    )


@pytest.mark.parametrize(
    ("detail", "rows"),
    [
        ("verbs", {"ride": "0.00 0.00", "hold": "0.00 0.00", "kick": "50.00 100.00"}),
        ("objects", {"bike": "0.00 0.00", "ball": "25.00 50.00"}),
        ("interactions", {"ride bike": "0.00 0.00", "kick ball": "50.00 100.00"}),
    ],
)
def test_a_row_for_each_entry_and_a_column_for_each_setting(results, detail, rows):
    lines = format_detail_table([results], detail)
    assert lines[0].split()[-4:] == ["default", "setting", "known-object", "setting"]
    table = {line[: line.index("  ")]: " ".join(line.split()[-2:]) for line in lines[1:]}
    assert {name: table.get(name) for name in rows} == rows
    assert len({len(line) for line in lines}) == 1


def test_the_groups_of_every_split(results, toy):
    lines = format_detail_table([results], "splits")[1:]
    groups = ("seen", "unseen", "harmonic mean")
    names = [f"{split}, {group}" for split in toy.splits for group in groups]
    assert [line[: line.index("  ")] for line in lines] == names
    (unseen,) = [line for line in lines if line.startswith("ua, unseen")]
    wanted = [results.splits["ua"]["unseen"], results.known_object.splits["ua"]["unseen"]]
    assert unseen.split()[-2:] == [f"{100 * value:.2f}" for value in wanted]
