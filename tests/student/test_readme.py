"""Runs the README's Python examples on a small dataset instead of the demo's."""

import re
from pathlib import Path

import pytest
import torch

import eoid

README = Path(__file__).parents[2] / "README.md"


def examples():
    blocks = README.read_text().split("```python\n")[1:]
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
    for function, path in re.findall(r'eoid\.([\w.]+)\("(demo/[^"]+)"\)', README.read_text()):
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


def test_the_detectors_example(demo):
    pytest.importorskip("supervision")
    (code,) = [code for code in examples() if "eoid.Detector" in code]
    values = {}
    exec(code, values)
    result = values["result"]
    assert len(result.actions) == len(result.scores) == len(result.human_boxes) <= 10
    assert (demo / "drawn.jpg").is_file()


def test_the_example_of_datasets_caches_and_models(demo):
    (code,) = [code for code in examples() if "eoid.open_cache" in code]
    values = {"image": torch.zeros(3, 64, 96)}
    exec(code, values)
    vocabulary, teacher = values["dataset"].vocabulary, values["teacher"]
    assert teacher.probabilities.shape == (len(teacher.pairs.human_boxes), vocabulary.num_verbs)
    logits = values["outputs"]["pred_verb_logits"]
    assert len(logits) == 1 and logits.shape[2] == vocabulary.num_verbs
