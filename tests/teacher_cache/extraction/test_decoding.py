from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from PIL import Image

from pipeline.utils.errors import InputError
from teacher_cache.extraction import decoding
from teacher_cache.extraction.decoding import Failures, Question, read_ahead, same_size_batches

SIZES = [(8, 6), (6, 8), (8, 6), (8, 6), (8, 6)]


@pytest.fixture
def questions(tmp_path):
    made = []
    for number, size in enumerate(SIZES):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", size, (number, 0, 0)).save(path)
        made.append(Question(path.name, path, annotated=None))
    return made


def test_no_images():
    failures = Failures([], strict=True)
    assert same_size_batches([], 4, failures) == []
    with ThreadPoolExecutor(1) as pool:
        assert list(read_ahead(pool, [], [], failures)) == []


def test_batches_hold_one_size_each(questions):
    assert same_size_batches(questions, 3, Failures(questions, True)) == [[0, 2, 3], [4], [1]]


def test_batches_are_read_in_order_without_the_broken(questions):
    questions[3].path.write_bytes(questions[3].path.read_bytes()[:-30])
    failures = Failures(questions, strict=False)
    with ThreadPoolExecutor(1) as pool:
        found = list(read_ahead(pool, [[0, 2, 3], [4], [1]], questions, failures))
    assert [indices for indices, _ in found] == [[0, 2], [4], [1]]
    reds = [[image.getpixel((0, 0))[0] for image in images] for _, images in found]
    assert reds == [[0, 2], [4], [1]]
    assert list(failures.by_image()) == ["3.png"]
    assert "3.png" not in failures.by_image()["3.png"]


def test_no_image_at_all(questions):
    questions[1].path.write_text("no picture")
    questions[0].path.unlink()
    failures = Failures(questions, strict=False)
    assert same_size_batches(questions, 9, failures) == [[2, 3, 4]]
    assert list(failures.by_image()) == ["0.png", "1.png"]


def test_fewer_large_images_make_a_batch(questions, monkeypatch):
    monkeypatch.setattr(decoding, "PIXELS_AT_ONCE", 2 * 8 * 6)
    failures = Failures(questions, True)
    assert same_size_batches(questions, 4, failures) == [[0, 2], [3, 4], [1]]
    monkeypatch.setattr(decoding, "PIXELS_AT_ONCE", 1)
    assert same_size_batches(questions, 4, failures) == [[0], [2], [3], [4], [1]]


def test_pictures_of_another_size_than_annotated(questions):
    sizes = [(6, 8), (6, 8), (16, 12), None, (8, 6)]
    asked = [replace(one, size=size) for one, size in zip(questions, sizes, strict=True)]
    failures = Failures(asked, strict=False)
    assert same_size_batches(asked, 4, failures) == [[1], [3, 4]]
    reasons = failures.by_image()
    assert "6 x 8" in reasons["0.png"] and "8 x 6" in reasons["0.png"]
    assert "16 x 12" in reasons["2.png"] and "8 x 6" in reasons["2.png"]


def test_strict(questions):
    questions[1].path.write_text("no picture")
    with pytest.raises(InputError, match=r"1\.png"):
        same_size_batches(questions, 9, Failures(questions, strict=True))
