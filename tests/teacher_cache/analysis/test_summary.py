from dataclasses import replace

import numpy as np
import pytest

from teacher_cache.analysis.summary import (
    HISTOGRAM_BINS,
    CacheOverview,
    TeacherScores,
    VerbScores,
    count_quantile,
    draw_overview,
    draw_teacher_scores,
    format_overview,
    format_teacher_scores,
    histogram_quantile,
    overview_to_json,
)


def histogram(*values):
    counts = np.zeros(HISTOGRAM_BINS, dtype=np.int64)
    np.add.at(
        counts, np.minimum((np.array(values) * HISTOGRAM_BINS).astype(int), HISTOGRAM_BINS - 1), 1
    )
    return counts


OVERVIEW = CacheOverview(
    title="cache",
    counts={"images": 4, "regions": 6, "annotated pairs": 3, "proposed pairs": 5},
    file_bytes=1_100,
    raw_bytes=1_000,
    pairs_per_image=np.array([1, 1, 0, 1, 1]),
    confidence={"annotated": histogram(0.5, 0.7, 0.9), "proposed": histogram(1.0)},
    top_actions=np.array([[0, 0], [1, 3], [5, 0]]),
    objects=("person", "horse", "ball"),
    verbs=("ride", "hold"),
    parts={"clip.model": "A"},
)
EMPTY = replace(
    OVERVIEW,
    counts=dict.fromkeys(OVERVIEW.counts, 0),
    pairs_per_image=np.zeros(1, dtype=np.int64),
    confidence={kind: histogram() for kind in OVERVIEW.confidence},
    top_actions=np.zeros((3, 2), dtype=np.int64),
)


def test_an_empty_cache():
    lines = format_overview(EMPTY)
    assert "best action by object" not in lines and not any("confidence" in x for x in lines)
    value = overview_to_json(EMPTY)
    assert value["repeated_unions"] is None and value["top_actions"] == {}
    assert value["pairs_per_image"]["mean"] is None
    assert value["confidence"]["annotated"] == {"pairs": 0, "p10": None, "p50": None, "p90": None}


@pytest.mark.parametrize(
    "values, share, expected", [([], 0.5, None), ([0.25], 0.5, 0.25), ([0.1, 0.5, 0.9], 0.5, 0.5),
                              ([0.1, 0.5, 0.9], 0.9, 0.9), ([1.0] * 3, 0.9, 1.0)]
)  # fmt: skip
def test_quantiles(values, share, expected):
    found = histogram_quantile(histogram(*values), share)
    assert found == expected or found == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    "counts, expected", [([0], 0), ([4], 0), ([1, 1, 0, 1, 1], 1), ([1, 0, 9], 2)]
)
def test_median_of_counts(counts, expected):
    assert count_quantile(np.array(counts), 0.5) == expected


def test_table_of_the_overview():
    rows = {line[:26].strip(): line[26:] for line in format_overview(OVERVIEW)}
    assert rows["repeated unions"] == "25.0 %"
    assert rows["bytes per raw byte"] == "1.100"
    assert rows["pairs per image"] == "2.0, half of the images up to 1, at most 4"
    assert rows["confidence, annotated"].startswith("0.70 (median; 80 % from 0.50 to 0.90")
    lines = format_overview(OVERVIEW)
    objects = [
        line.split() for line in lines if "%" in line and line.split()[0] in OVERVIEW.objects
    ]
    assert objects == [
        ["ball", "5", "ride", "100", "%"],
        ["horse", "4", "hold", "75", "%,", "ride", "25", "%"],
    ]


def test_json_of_the_overview():
    value = overview_to_json(OVERVIEW)
    assert value["counts"]["annotated_pairs"] == 3
    assert value["pairs_per_image"] == {
        "mean": 2.0,
        "median": 1,
        "max": 4,
        "images_by_pairs": [1, 1, 0, 1, 1],
    }
    assert value["top_actions"] == {"ball": {"ride": 5}, "horse": {"ride": 1, "hold": 3}}
    assert value["confidence"]["proposed"]["pairs"] == 1


@pytest.mark.parametrize("overview", [EMPTY, OVERVIEW])
@pytest.mark.filterwarnings("error")
def test_the_figure_of_the_overview(tmp_path, overview):
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    draw_overview(tmp_path / "c.png", overview)
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_a_figure_of_many_objects_and_pairs(tmp_path):
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    rng = np.random.default_rng(0)
    many = replace(
        OVERVIEW,
        pairs_per_image=rng.integers(0, 50, 211),
        top_actions=rng.integers(0, 50, (80, 117)),
        objects=tuple(f"object {number}" for number in range(80)),
        verbs=tuple(f"verb {number}" for number in range(117)),
    )
    draw_overview(tmp_path / "c.png", many)
    assert (tmp_path / "c.png").is_file()


VERBS = (
    VerbScores("sit on", False, 12, 0.5, 0.25, 0.75, 0.125),
    VerbScores("jump", True, 0, None, None, None, None),
)
SCORES = TeacherScores(
    title="toy, test part",
    annotated={"full": 0.5, "seen": 0.4, "rare": None, "actions": 0.7},
    proposed={"full": 0.25, "seen": None, "rare": None, "actions": 0.3},
    rates={"teacher accuracy": 0.75, "person recall": None},
    verbs=VERBS,
)


def test_groups_without_scores_are_omitted():
    assert SCORES.group_rows() == [
        ("Full", 0.5, 0.25),
        ("Seen", 0.4, None),
        ("Full, actions only", 0.7, 0.3),
    ]


def test_the_score_table_is_aligned():
    lines = format_teacher_scores(SCORES)
    assert lines[0] == "toy, test part"
    rows = {line[:24].strip(): line[24:].split() for line in lines}
    assert rows["Full"] == ["50.0", "25.0"] and rows["Seen"] == ["40.0", "-"]
    start = next(row for row, line in enumerate(lines) if line.startswith("verb"))
    table = lines[start:]
    assert len({len(line) for line in table}) == 1
    assert table[1].split() == ["sit", "on", "12", "50.0", "25.0", "75.0", "12.5"]
    assert table[2].split() == ["jump", "*", "0", "-", "-", "-", "-"]


def test_scores_without_proposed_pairs():
    scores = TeacherScores("t", {"full": 0.5}, {}, {}, ())
    assert scores.group_rows() == [("Full", 0.5, None)]
    assert any(line.split() == ["Full", "50.0", "-"] for line in format_teacher_scores(scores))


@pytest.mark.parametrize("num_verbs", [0, 2, 117])
@pytest.mark.filterwarnings("error")
def test_the_figure_of_scores(tmp_path, num_verbs):
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    verbs = tuple(VERBS[number % 2] for number in range(num_verbs))
    file = tmp_path / "t.png"
    draw_teacher_scores(file, TeacherScores("t", SCORES.annotated, SCORES.proposed, {}, verbs))
    assert file.read_bytes().startswith(b"\x89PNG")
