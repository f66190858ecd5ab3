from dataclasses import replace

import numpy as np
import pytest

from teacher_cache.analysis.summary import (
    HISTOGRAM_BINS,
    CacheOverview,
    count_quantile,
    draw_overview,
    format_overview,
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


def test_nothing():
    lines = format_overview(EMPTY)
    assert "best action by object" not in lines and not any("confidence" in x for x in lines)
    value = overview_to_json(EMPTY)
    assert value["repeated_unions"] is None and value["top_actions"] == {}
    assert value["pairs_per_image"]["mean"] is None
    assert value["confidence"]["annotated"] == {"pairs": 0, "p10": None, "p50": None, "p90": None}


@pytest.mark.parametrize(
    "values, share, wanted", [([], 0.5, None), ([0.25], 0.5, 0.25), ([0.1, 0.5, 0.9], 0.5, 0.5),
                              ([0.1, 0.5, 0.9], 0.9, 0.9), ([1.0] * 3, 0.9, 1.0)]
)  # fmt: skip
def test_quantiles(values, share, wanted):
    found = histogram_quantile(histogram(*values), share)
    assert found == wanted or found == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize(
    "counts, wanted", [([0], 0), ([4], 0), ([1, 1, 0, 1, 1], 1), ([1, 0, 9], 2)]
)
def test_half_of_the_images(counts, wanted):
    assert count_quantile(np.array(counts), 0.5) == wanted


def test_lines():
    rows = {line[:26].strip(): line[26:] for line in format_overview(OVERVIEW)}
    assert rows["repeated unions"] == "25.0 %"
    assert rows["bytes per raw byte"] == "1.100"
    assert rows["pairs per image"] == "2.0, half of the images up to 1, at most 4"
    assert rows["confidence, annotated"].startswith("0.70 (median; 80 % from 0.50 to 0.90")
    text = format_overview(OVERVIEW)
    objects = [line.split() for line in text if "%" in line and line.split()[0] in OVERVIEW.objects]
    assert objects == [
        ["ball", "5", "ride", "100", "%"],
        ["horse", "4", "hold", "75", "%,", "ride", "25", "%"],
    ]


def test_json():
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
def test_the_picture(tmp_path, overview):
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    draw_overview(tmp_path / "c.png", overview)
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_of_many_objects_and_pairs(tmp_path):
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
