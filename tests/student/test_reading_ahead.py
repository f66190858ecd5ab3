import threading

import pytest

from student.reading_ahead import batches_of_one_kind, read_ahead


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("count", [0, 1, 20])
def test_all_items_in_order(threads, count):
    assert list(read_ahead(lambda n: n * n, range(count), threads)) == [n * n for n in range(count)]


@pytest.mark.parametrize("threads", [0, 2])
def test_only_a_few_items_are_made_before_somebody_asks(threads):
    made = []
    stream = read_ahead(made.append, range(100), threads)
    next(stream)
    stream.close()
    assert 1 <= len(made) <= 2 * threads + 1


def test_an_error_reaches_who_asks_and_the_threads_end():
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        list(read_ahead(lambda n: 1 // n, [1, 1, 0, 1], 2))
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("items", "batches"),
    [
        ("", []),
        ("a", ["a"]),
        ("aaa", ["aa", "a"]),
        ("abab", ["aa", "bb"]),
        # Four items wait: the largest group goes, the first among equals.
        ("abcd", ["a", "b", "c", "d"]),
        ("abcaa", ["aa", "b", "c", "a"]),
    ],
)
def test_batches(items, batches):
    assert ["".join(batch) for batch in batches_of_one_kind(items, str, 2)] == batches


def test_few_items_wait():
    held = set()

    def come():
        for number in range(1000):
            held.add(number)
            assert len(held) <= 16
            yield number

    for batch in batches_of_one_kind(come(), lambda number: number % 37, 8):
        assert len({number % 37 for number in batch}) == 1
        held.difference_update(batch)
    assert not held
