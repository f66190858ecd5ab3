import pytest

from evaluation.analysis.class_tables import ClassRow
from evaluation.report.charts.bars import NUM_EXTREMES, class_bars
from evaluation.report.charts.plots import ap_by_frequency


def rows(num_unseen, num_seen, training=lambda index: 3 * index):
    return [
        ClassRow(
            *(f"class {index:03}", index, index < num_unseen, False, training(index), 5),
            (1 - index / 1000, 0.25),
        )
        for index in range(num_unseen + num_seen)
    ]


@pytest.mark.parametrize("counts", [(3, 8), (0, 1), (1, 0), (20, 5), (0, 7)])
def test_few_classes_are_all_named(counts, entries, texts):
    chart = class_bars(rows(*counts), entries[0])
    for found in texts(chart):
        named = [text for text in found if "class" in text]
        assert len(named) == sum(counts)
        assert sum(text.startswith("★ class") for text in named) == counts[0]
        assert ("unseen" in found) == (counts[0] > 0)
    assert ("var(--unseen)" in chart.wide) == (counts[0] > 0)
    assert ("var(--seen)" in chart.wide) == (counts[1] > 0)


@pytest.mark.parametrize("counts", [(100, 500), (0, 600), (61, 0), (3, 100)])
def test_of_many_classes_the_extremes_are_named(counts, entries, texts):
    chart = class_bars(rows(*counts), entries[0])
    titles = ("All {} {} interactions, mean", "{} {}, mean")
    for found, kinds in zip(texts(chart), titles, strict=True):
        named = {text.removeprefix("★ ") for text in found if "class" in text}
        assert len(named) <= 4 * NUM_EXTREMES
        for first, number in ((0, counts[0]), (counts[0], counts[1])):
            if number:
                assert {f"class {first:03}", f"class {first + number - 1:03}"} <= named
                kind = "unseen" if first == 0 and counts[0] else "seen"
                start = ("★ " if kind == "unseen" else "") + kinds.format(number, kind)
                assert [text for text in found if text.startswith(start)]
    # An outline instead of a bar for each class.
    assert len(chart.wide) < 200_000


def test_alt_names_the_ends(entries):
    alt = class_bars(rows(2, 3), entries[0]).alt
    assert "2 unseen interactions, mean 100.0, from class 000 (100.0) down to class 001" in alt
    assert "3 seen interactions" in alt


def test_classes_without_a_number_stay_out(entries, texts):
    some = [*rows(1, 2), ClassRow("class x", None, False, False, None, None, (None, 0.5))]
    assert not any("class x" in text for text in texts(class_bars(some, entries[0]))[0])


@pytest.mark.parametrize("training", [lambda index: index, lambda index: 7 + 9**index])
@pytest.mark.parametrize("counts", [(2, 6), (0, 3), (3, 0)])
def test_ap_by_training(counts, training, entries, texts):
    chart = ap_by_frequency(rows(*counts, training), entries)
    for found in texts(chart):
        assert {"Distilled", "No distillation", "training instances", "AP"} <= set(found)
        assert ("unseen" in found) == (counts[0] > 0)
        assert ("seen" in found) == (counts[1] > 0)
    assert "NaN" not in chart.wide
    assert "Distilled, mean AP: " in chart.alt


def test_points_of_both_kinds_have_shapes_of_their_own(entries):
    chart = ap_by_frequency(rows(2, 2), entries[:1])
    assert chart.wide.count("var(--unseen)") == chart.wide.count("var(--seen)")
