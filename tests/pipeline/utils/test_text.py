import pytest

from pipeline.utils.text import count_noun, format_bytes, format_duration


@pytest.mark.parametrize(
    ("nouns", "one"),
    [
        ("images", "1 image"),
        ("boxes without area (dropped)", "1 box without area (dropped)"),
        ("malformed entries", "1 malformed entry"),
        ("classes", "1 class"),
        ("labels of boxes without area", "1 label of boxes without area"),
        ("images whose size is that of others", "1 image whose size is that of others"),
        ("people", "1 people"),
    ],
)
def test_one_is_singular(nouns, one):
    assert count_noun(1, nouns) == one
    assert [count_noun(count, nouns) for count in (0, 2)] == [f"0 {nouns}", f"2 {nouns}"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (89.4, "89 s"),
        (90, "2 min"),
        (89 * 60, "89 min"),
        (90 * 60, "1 h 30 min"),
        (7170, "2 h 0 min"),
        (47.9 * 3600, "47 h 54 min"),
        (76 * 3600, "3 d 4 h"),
    ],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (9949, "9.9 kB"),
        (9951, "10 kB"),
        (999_499, "999 kB"),
        (999_600, "1.0 MB"),
        (812e9, "812 GB"),
        (4.2e15, "4200 TB"),
    ],
)
def test_sizes(count, text):
    assert format_bytes(count) == text
