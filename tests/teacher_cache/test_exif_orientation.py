"""Images with an EXIF orientation, and images of other sizes than annotated."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets.dataset import open_dataset
from pipeline.images import read_image
from pipeline.utils.errors import InputError
from teacher_cache.analysis.evaluate import evaluate_teacher
from teacher_cache.analysis.show import show_image

ANNOTATIONS = "annotations/trainval_hico.json"


@pytest.fixture(scope="module")
def twins(shared_dataset, turned_twins, tmp_path_factory):
    return turned_twins(shared_dataset, tmp_path_factory.mktemp("twins"), "train")


def detections_in_stored_pixels(root):
    """The annotated boxes as detections of a program that ignores EXIF orientations."""
    entries = json.loads((root / ANNOTATIONS).read_text())
    return [
        {
            "image_id": entry["file_name"],
            "category_id": row["category_id"],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": 0.9,
        }
        for entry in entries
        for row in entry["annotations"]
        for x1, y1, x2, y2 in [row["bbox"]]
    ]


@pytest.mark.parametrize("candidates", ["detector", "annotated", "proposals"])
def test_rotated_copies_give_equal_caches(twins, build, tmp_path, candidates, messages):
    caches = []
    for root in twins:
        changes = {}
        if candidates == "proposals":
            changes["proposals"] = tmp_path / f"{root.name}.json"
            changes["proposals"].write_text(json.dumps(detections_in_stored_pixels(root)))
        else:
            changes["candidates"] = candidates
        messages.clear()
        caches.append(build(root, root.name, **changes))
    upright, stored = caches
    assert upright.image_ids == stored.image_ids and len(upright) == 7
    for name in upright.image_ids:
        first, second = upright[name], stored[name]
        for field in ("human_boxes", "object_boxes", "object_labels", "sources"):
            np.testing.assert_array_equal(getattr(first.pairs, field), getattr(second.pairs, field))
        np.testing.assert_allclose(first.probabilities, second.probabilities, atol=2e-3)
    assert upright.fingerprint != stored.fingerprint
    assert 'orientation = "stored"' in "".join(messages)


def test_a_cache_belongs_to_one_orientation_setting(twins, build, tmp_path):
    cache = build(twins[1], candidates="annotated")
    dataset = open_dataset(twins[1])
    cache.check(dataset.vocabulary, dataset.load("train").digest, "train")
    with pytest.raises(InputError, match="annotations"):
        cache.check(
            dataset.vocabulary, replace(dataset, orientation="upright").load("train").digest
        )
    name = cache.image_ids[0]
    show_image(cache.path, name, twins[1], tmp_path / "drawn.png")
    assert read_image(tmp_path / "drawn.png").size[0] > 0
    predictions = tmp_path / "predictions.json"
    evaluate_teacher(cache.path, twins[1], predictions=predictions)
    stored = json.loads(predictions.read_text())
    entries = json.loads((twins[1] / ANNOTATIONS).read_text())
    for image, entry in zip(stored, entries, strict=True):
        labelled = [row["bbox"] for row in entry["annotations"]]
        assert all(row["bbox"] in labelled for row in image["predictions"])


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (lambda size: size, ['set orientation = "stored"', "declared 128 x 160", "of 7"]),
        (lambda size: [2 * side for side in size], ["declared 320 x 256", "7 of 7"]),
    ],
)
def test_wrong_sizes_are_refused_before_the_build(
    twins, build, tmp_path, turned_twins, change, facts
):
    _, root = turned_twins(twins[0], tmp_path, "train")
    description = root / "dataset.toml"
    description.write_text(description.read_text().replace('orientation = "stored"\n', ""))
    entries = json.loads((root / ANNOTATIONS).read_text())
    for entry in entries:
        entry["width"], entry["height"] = change((entry["width"], entry["height"]))
    (root / ANNOTATIONS).write_text(json.dumps(entries))
    with pytest.raises(InputError) as caught:
        build(root)
    assert all(fact in str(caught.value) for fact in facts), str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_outdated_exif_tags_are_ignored_with_orientation_stored(twins, build, tmp_path, messages):
    root = shutil.copytree(twins[0], tmp_path / "toy")
    exif = Image.Exif()
    exif[0x0112] = 8
    for path in (root / "images/train2015").iterdir():
        with Image.open(path) as image:
            image.load()
        image.save(path, "PNG", exif=exif)
    description = root / "dataset.toml"
    description.write_text('orientation = "stored"\n' + description.read_text())
    upright, stored = build(twins[0], "upright"), build(root, "stored")
    assert sum("left over" in line for line in messages) == 1
    for name in upright.image_ids:
        np.testing.assert_array_equal(
            upright[name].pairs.human_boxes, stored[name].pairs.human_boxes
        )
        np.testing.assert_array_equal(upright[name].probabilities, stored[name].probabilities)
    assert upright.image_ids == stored.image_ids
    drawn = tmp_path / "drawn.png"
    show_image(stored.path, stored.image_ids[0], root, drawn)
    assert drawn.is_file()
