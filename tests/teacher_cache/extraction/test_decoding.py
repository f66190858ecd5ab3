import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from PIL import Image

from pipeline.images import read_image
from teacher_cache.extraction import decoding
from teacher_cache.extraction.decoding import (
    ImageTask,
    prefetch_images,
    same_size_batches,
)


def refuse(index, error):
    """For images without errors."""
    raise error


SIZES = [(8, 6), (6, 8), (8, 6), (8, 6), (8, 6)]


@pytest.fixture
def image_tasks(tmp_path):
    image_tasks = []
    for number, size in enumerate(SIZES):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", size, (number, 0, 0)).save(path)
        image_tasks.append(ImageTask(path.name, path, annotated_pairs=None))
    return image_tasks


def test_no_images():
    assert same_size_batches([], 4, refuse) == []
    with ThreadPoolExecutor(1) as pool:
        assert list(prefetch_images(pool, [], [], refuse)) == []


def test_images_of_a_batch_have_equal_sizes(image_tasks):
    assert same_size_batches(image_tasks, 3, refuse) == [[0, 2, 3], [4], [1]]


def test_prefetching_keeps_order_and_leaves_out_broken_images(image_tasks):
    image_tasks[3].path.write_bytes(image_tasks[3].path.read_bytes()[:-30])
    failures = {}
    with ThreadPoolExecutor(1) as pool:
        batches = list(
            prefetch_images(pool, [[0, 2, 3], [4], [1]], image_tasks, failures.__setitem__)
        )
    assert [indices for indices, _ in batches] == [[0, 2], [4], [1]]
    reds = [[image.getpixel((0, 0))[0] for image in images] for _, images in batches]
    assert reds == [[0, 2], [4], [1]]
    assert list(failures) == [3]


def test_beside_a_large_image_no_other_is_decoded_or_held(image_tasks, monkeypatch):
    monkeypatch.setattr("pipeline.images.LARGE_IMAGE_PIXELS", 47)
    image_tasks[0].path.unlink()
    Image.new("RGB", (6, 7)).save(image_tasks[0].path, "PNG")
    alive, events = weakref.WeakValueDictionary(), []

    def read(path):
        events.append(("read", int(path.stem), len(alive)))
        image = read_image(path)
        alive[len(events)] = image
        return image

    monkeypatch.setattr(decoding, "read_image", read)
    with ThreadPoolExecutor(1) as pool:
        for indices, images in prefetch_images(pool, [[0], [1], [2], [3]], image_tasks, refuse):
            pool.submit(int).result()
            events.append(("use", *indices, len(alive)))
            del images
    # Image 0 is small, so that the next one is decoded beside it.
    assert events[:3] == [("read", 0, 0), ("read", 1, 1), ("use", 0, 2)]
    assert events[3:] == [
        *[("use", 1, 1), ("read", 2, 0), ("use", 2, 1), ("read", 3, 0), ("use", 3, 1)],
    ]


def test_files_that_are_not_images(image_tasks):
    image_tasks[1].path.write_text("not an image")
    image_tasks[0].path.unlink()
    failures = {}
    assert same_size_batches(image_tasks, 9, failures.__setitem__) == [[2, 3, 4]]
    assert list(failures) == [0, 1]


def test_batches_of_large_images_are_smaller(image_tasks, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_BATCH_PIXELS", 2 * 8 * 6)
    assert same_size_batches(image_tasks, 4, refuse) == [[0, 2], [3, 4], [1]]
    monkeypatch.setattr(decoding, "MAX_BATCH_PIXELS", 1)
    assert same_size_batches(image_tasks, 4, refuse) == [[0], [2], [3], [4], [1]]


def test_images_of_another_size_than_annotated_fail(image_tasks):
    sizes = [(6, 8), (6, 8), (16, 12), None, (8, 6)]
    image_tasks = [replace(task, size=size) for task, size in zip(image_tasks, sizes, strict=True)]
    failures = {}
    assert same_size_batches(image_tasks, 4, failures.__setitem__) == [[1], [3, 4]]
    assert "6 x 8" in str(failures[0]) and "8 x 6" in str(failures[0])
    assert "16 x 12" in str(failures[2]) and "8 x 6" in str(failures[2])
