"""Runs the Python examples of the documentation on a small dataset instead of the demo's."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import eoid
from pipeline.toy.generate import write_toy

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/how-to/predict.md", "docs/reference/python.md")


def text_of_pages():
    return "\n".join((ROOT / page).read_text() for page in PAGES)


def examples():
    blocks = text_of_pages().split("```python\n")[1:]
    return [code for block in blocks if "import eoid" in (code := block.partition("```")[0])]


@pytest.fixture
def demo(tmp_path, monkeypatch, dataset_root, cache_path, toy_checkpoint, write_image):
    """Working folder with an image, and the paths that the examples open."""
    opened = {
        "open_dataset": dataset_root,
        "open_cache": cache_path,
        "load_model": toy_checkpoint,
        "Detector.open": toy_checkpoint,
    }
    for function, path in re.findall(r'eoid\.([\w.]+)\("(demo/[^"]+)"\)', text_of_pages()):
        link = tmp_path / path
        if not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(opened[function])
    write_image("photo.jpg", (160, 128))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_part_of_the_interface_has_an_example():
    text = "".join(examples())
    assert [name for name in eoid.__all__ if f"eoid.{name}" not in text] == ["__version__"]


def test_examples_of_the_detector(demo):
    pytest.importorskip("supervision", reason="supervision is not installed")
    codes = [code for code in examples() if "eoid.Detector" in code]
    assert len(codes) == 2
    for code in codes:
        values = {}
        exec(code, values)
        result = values["result"]
        assert len(result.actions) == len(result.scores) == len(result.human_boxes) <= 10
        (demo / "drawn.jpg").unlink()


def test_the_example_of_datasets_caches_and_models(demo):
    (code,) = [code for code in examples() if "eoid.open_cache" in code]
    values = {"image": torch.zeros(3, 64, 96)}
    exec(code, values)
    vocabulary, teacher = values["dataset"].vocabulary, values["teacher"]
    assert teacher.probabilities.shape == (len(teacher.pairs.human_boxes), vocabulary.num_verbs)
    logits = values["outputs"]["pred_verb_logits"]
    assert len(logits) == 1 and logits.shape[2] == vocabulary.num_verbs


def test_the_examples_of_supervision_and_coco(tmp_path, monkeypatch):
    pytest.importorskip("supervision", reason="supervision is not installed")
    monkeypatch.chdir(tmp_path)
    write_toy(tmp_path / "pictures", 1, 12, seed=0)
    page = (ROOT / "docs/how-to/supervision.md").read_text()
    values = {}
    for block in page.split("```python\n")[1:]:
        exec(block.partition("```")[0], values)
    boxes = values["boxes"]
    assert set(boxes.data["role"]) == {"person", "object"} and len(values["once"]) <= len(boxes)
    with Image.open("drawn.png") as drawn:
        assert drawn.size == (512, 512)
    entries = json.loads((tmp_path / "coco_results.json").read_text())
    assert {entry["image_id"] for entry in entries} == {17}
    for column in boxes.data:
        assert f"| `{column}` |" in page
