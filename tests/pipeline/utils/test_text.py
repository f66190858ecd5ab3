import pytest

from pipeline.utils.text import count_noun


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
