import numpy as np
import pytest

from pipeline.datasets.check import check_dataset, summarise_problems
from pipeline.datasets.size_check import check_image_sizes, find_sideways_images, stale_exif_message
from pipeline.images import ImageHeader
from pipeline.types import Annotation
from pipeline.utils.errors import InputError

SIZE = (60, 40)
OBJECT_BOX = [5.0, 3.0, 25.0, 33.0]


def person(box, size=None):
    boxes, labels = np.array([box], np.float32), np.zeros(1, np.int64)
    return Annotation("a.png", boxes, labels, np.zeros((0, 3), np.int64), size)


@pytest.mark.parametrize(
    ("annotation", "num_fit_stored", "num_fit_upright", "undeclared"),
    [
        (person([0, 0, 10, 20]), 0, 0, ()),
        (person([0, 0, 55, 20]), 1, 0, ()),
        (person([0, 0, 10, 55]), 0, 1, ("a.png",)),
        (person([0, 0, 10, 20], SIZE), 1, 0, ()),
        (person([0, 0, 10, 20], SIZE[::-1]), 0, 1, ()),
        (person([0, 0, 10, 20], (99, 99)), 0, 0, ()),
    ],
)
def test_statistics_of_transposed_images(annotation, num_fit_stored, num_fit_upright, undeclared):
    headers = [ImageHeader(SIZE, 6), ImageHeader(SIZE, 3), InputError("unreadable")]
    found = find_sideways_images([annotation] * 3, headers, person=0)
    assert found.num_images == 1
    assert (found.num_fit_stored, found.num_fit_upright) == (num_fit_stored, num_fit_upright)
    assert found.undeclared == undeclared
    width, height = annotation.boxes[0, 2:]
    assert found.log_aspect_ratios == pytest.approx([np.log(height / width)])


@pytest.mark.parametrize(
    ("box", "count", "stale"),
    [([0, 0, 10, 20], 10, True), ([0, 0, 10, 20], 9, False), ([0, 0, 20, 10], 50, False)],
)
def test_stale_exif_needs_enough_upright_people(box, count, stale):
    headers = [ImageHeader(SIZE, 8)] * count
    found = find_sideways_images([person(box)] * count, headers, person=0)
    assert bool(stale_exif_message([found])) == stale


@pytest.fixture
def standing(turned):
    """Makes a dataset of images with EXIF orientation 6 in which people stand upright as stored.

    Arguments: number of images with one person by part, declared size, lower edge of the people.
    """

    def make(parts, declared=None, reach=38):
        for part, people in parts.items():
            dataset = turned(
                [6] * people,
                "stored",
                declared,
                part=part,
                boxes=lambda number: [[5, 3, 20, reach - number / 10], OBJECT_BOX],
            )
        return dataset

    return make


@pytest.mark.parametrize("declared", [None, SIZE])
def test_stale_exif_tags_are_detected_from_all_parts_together(standing, declared):
    """The three people of the test part alone would be too few."""
    dataset = standing({"train": 12, "test": 3}, declared)
    (first, *_) = dataset.load("test").annotations
    assert first.boxes[0].tolist() == [5, 3, 20, 38]
    dataset.load("train")
    assert dataset.stale_exif.keys() == {"train", "test"}


@pytest.mark.parametrize(("declared", "reach"), [(SIZE[::-1], 58), (None, 58)])
def test_boxes_that_fit_upright_only_are_not_taken_for_stale_exif_tags(standing, declared, reach):
    dataset = standing({"train": 12}, declared, reach)
    with pytest.raises(InputError) as caught:
        check_image_sizes(dataset, dataset.load("train")).raise_errors()
    facts = ("train.json", "EXIF", 'orientation = "upright"', "000.png", "12")
    assert all(fact in str(caught.value) for fact in facts), str(caught.value)
    assert not dataset.stale_exif
    assert 'orientation = "upright"' in summarise_problems(check_dataset(dataset))
