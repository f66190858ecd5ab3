import json

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets.dataset import open_dataset
from teacher_cache.detectors.proposals import (
    ProposalsConfig,
    load_proposals,
    remove_stored_proposals,
    store_proposals,
)

ANNOTATIONS = "annotations/trainval_hico.json"
BOX = [100.0, 90.0, 300.0, 20.0]


@pytest.fixture
def opened(dataset, tmp_path):
    """`opened(strict=False)` gives the rows of a file with one wide box in every image."""
    entries = [
        {"image_id": number, "category_id": 1, "bbox": BOX, "score": 0.5} for number in range(1, 8)
    ]
    (tmp_path / "results.json").write_text(json.dumps(entries))
    config = ProposalsConfig(tmp_path / "results.json", tmp_path / "cache")

    def call(strict=False):
        data = open_dataset(dataset)
        return load_proposals(config, data, data.load("train"), strict)

    return call


def widths(proposals):
    return [box.boxes[0, 2] for box in proposals.by_image(7)]


def test_sizes_are_the_annotated_ones(opened):
    assert widths(opened()) == [128] * 7


def test_sizes_are_the_pictures_where_none_is_annotated(dataset, opened):
    path = dataset / ANNOTATIONS
    entries = json.loads(path.read_text())
    for entry in entries:
        del entry["width"], entry["height"]
    path.write_text(json.dumps(entries))
    pictures = sorted((dataset / "images/train2015").iterdir())
    Image.new("RGB", (200, 128)).save(pictures[0])
    pictures[1].write_bytes(b"no picture")
    pictures[2].unlink()
    assert widths(opened()) == [200, 400, 400, 128, 128, 128, 128]


def test_kept_rows_are_read_instead_of_the_file(opened, monkeypatch):
    first = opened()
    store_proposals(first)
    with monkeypatch.context() as patch:
        patch.setattr("teacher_cache.detectors.proposals.read_proposals", None)
        again = opened()
    np.testing.assert_array_equal(again.rows, first.rows)
    assert (again.digest, again.stored_rows) == (first.digest, first.stored_rows)
    remove_stored_proposals(again)
    assert not first.stored_rows.exists()
    assert len(opened().rows) == 7


@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_damaged_rows_are_read_anew(opened, share):
    first = opened()
    store_proposals(first)
    content = first.stored_rows.read_bytes()
    first.stored_rows.write_bytes(content[: int(share * len(content))])
    np.testing.assert_array_equal(opened().rows, first.rows)


def test_rows_belong_to_one_content(dataset, opened):
    first = opened()
    path = dataset / ANNOTATIONS
    path.write_text(path.read_text() + "\n")
    assert opened().stored_rows != first.stored_rows
