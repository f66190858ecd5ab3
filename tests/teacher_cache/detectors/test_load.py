"""Detectors by name, and builds with the example of an own one in docs/how-to/detectors.md."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run_command
from PIL import Image
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

from pipeline.datasets.dataset import open_dataset
from pipeline.utils.errors import InputError
from teacher_cache.cli import main
from teacher_cache.detectors.base import DetectorConfig
from teacher_cache.detectors.load import load_detector
from teacher_cache.reader.cache import open_cache

CPU = torch.device("cpu")
PAGE = Path(__file__).parents[3] / "docs/how-to/detectors.md"
CODE = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
MIRRORED = ("--detector", "mirrored:Mirrored", "--detector-set", "weights=ssd.pth")
LENIENT = ("--person-threshold", 0.05, "--object-threshold", 0.05, "--max-objects", 3)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None).state_dict()
    for name, value in state.items():
        if re.fullmatch(r"head\.classification_head\.module_list\.\d\.1\.bias", name):
            # More people and horses than other objects.
            value.view(-1, 91)[:, [1, 19]] += 4
    file = tmp_path_factory.mktemp("weights") / "ssd.pth"
    torch.save(state, file)
    return file


@pytest.fixture
def folder(tmp_path, weights, monkeypatch):
    """The current folder, with the page's module and its weights."""
    (tmp_path / "mirrored.py").write_text(CODE[0])
    (tmp_path / "ssd.pth").symlink_to(weights)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mirrored", raising=False)
    return tmp_path


def run(*words):
    done = run_command(main, "eoid-cache", *words)
    return done.returncode, done.stderr


def build(dataset, *options, out="cache"):
    words = ["--out", out, "--device", "cpu", "--images-per-shard", 3, "--max-people", 2, *LENIENT]
    return run("build", dataset, *words, *options)


def test_the_detector_of_the_page_is_short():
    assert len(CODE[0].strip().splitlines()) <= 40


def test_a_build_with_the_detector_of_the_page(
    shared_dataset, folder, contents, vocabulary, monkeypatch
):
    code, err = build(shared_dataset, *MIRRORED)
    assert code == 0, err
    assert "mirrored ssdlite: has no class for 3 of the 9 objects of toy: bike, ball, box" in err
    assert "its classes bicycle, car, motorcycle, airplane, bus, ... are left out" in err
    cache, before = open_cache(folder / "cache"), contents(folder / "cache")
    assert sum(len(cache[image_id].pairs) for image_id in cache.image_ids) > 20
    parts = cache.manifest["parts"]
    own = {name: value for name, value in parts.items() if name.startswith("detector.")}
    assert own.pop("detector.settings.weights") == parts["detector.settings.weights"] != "ssd.pth"
    assert len(own.pop("detector.classes")) == 64
    assert own == {"detector.model": "mirrored ssdlite", "detector.version": 1}
    settings = cache.manifest["settings"]
    assert settings["detector"] == f"{folder}/mirrored:Mirrored"
    assert settings["detector_settings"] == [f"weights={folder}/ssd.pth"]

    # Other settings are refused, and a repair does not run the code.
    code, err = build(shared_dataset, *MIRRORED, "--detector-set", "iou=0.6")
    assert code == 2 and "detector.settings.iou: nothing, now 0.6" in err
    shard = folder / "cache/shards/00001.h5"
    shard.unlink()
    monkeypatch.delitem(sys.modules, "mirrored")
    for options in ([], ["--detector", "other:Mirrored"], ["--detector", "toy"]):
        code, err = run("verify", "cache", "--repair", *options)
        assert code == 2 and f"--detector: expected {folder}/mirrored:Mirrored of the cache" in err
    assert "mirrored" not in sys.modules
    code, err = run("verify", "cache", "--repair", "--detector", "mirrored:Mirrored")
    assert code == 0, err
    assert contents(folder / "cache") == before

    # From another folder, the build makes a shard again.
    shard.unlink()
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    name, weights = f"{folder}/mirrored.py:Mirrored", f"weights={folder}/ssd.pth"
    options = ("--detector", name, "--detector-set", weights)
    code, err = build(shared_dataset, *options, out=folder / "cache")
    assert code == 0 and "resuming" in err
    assert contents(folder / "cache") == before


@pytest.mark.slow
def test_two_workers(shared_dataset, folder, contents):
    for out, workers in {"one": 0, "two": 2}.items():
        code, err = build(shared_dataset, *MIRRORED, "--workers", workers, out=out)
        assert code == 0, err
    first, second = contents(folder / "one"), contents(folder / "two")
    assert first[0]["fingerprint"] == second[0]["fingerprint"]
    assert first[0]["counts"] == second[0]["counts"]


OWN = """
from teacher_cache.detectors.base import Detector

class Own(Detector):
    name, classes = "own", ["person"]
    def __init__(self, device, vocabulary, size: int = 3):
        super().__init__(device, vocabulary)
    def detect(self, images):
        return []

class Half(Detector):
    classes = ["person"]

class Other:
    pass

class Text(Own):
    classes = "person"

class Numbers(Own):
    classes = {0: "person"}

class Raising(Own):
    def __init__(self, device, vocabulary):
        super().__init__(device, vocabulary)
        vocabulary.horses
"""


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("own_code:Half", {}, "--detector: expected a class with the method detect, found own"),
        ("own_code:Other", {}, r"--detector: expected a subclass of .*\.Detector, found own_code"),
        ("own_code:Text", {}, "detector own: classes: expected a list, found person"),
        ("own_code:Numbers", {}, r"detector own: classes\[0\]: expected a text, found 0"),
        ("own_code:Raising", {}, r"--detector own_code:Raising: .*AttributeError.*own_code.py:\d"),
        ("own_code:Absent", {}, r"--detector: expected a class of .*own_code\.py, found Absent"),
        ("absent_code:Own", {}, "--detector: expected a module that can be imported, found absent"),
        ("own_code:Own", {"weights": "a.pth"}, "--detector-weights: expected none .* found a.pth"),
        ("own_code:Own", {"classes": ("a",)}, "--detector-classes: expected none .* 1 names"),
        ("own_code:Own", {"settings": (("width", "3"),)}, r"-set: .*\(size\), found width"),
        ("own_code:Own", {"settings": (("size", "big"),)}, "--detector-set: size: .* found big"),
        ("toy", {"settings": (("size", "3"),)}, r"--detector-set: .*\(none\), found size"),
    ],
)
def test_detectors_that_cannot_be_loaded(folder, vocabulary, name, options, text, monkeypatch):
    monkeypatch.delitem(sys.modules, "own_code", raising=False)
    (folder / "own_code.py").write_text(OWN)
    with pytest.raises(InputError, match=text) as caught:
        load_detector(DetectorConfig(name, **options), vocabulary, CPU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prefix", ["hf:", "hf-zero-shot:"])
def test_without_transformers(vocabulary, monkeypatch, prefix):
    monkeypatch.delitem(sys.modules, "teacher_cache.detectors.transformers", raising=False)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"--detector: .* transformers .*pip install '\.\[hf\]'"):
        load_detector(DetectorConfig(f"{prefix}owner/name"), vocabulary, CPU)


def test_settings_without_a_detector(shared_dataset, folder):
    options = ["--candidates", "annotated", "--detector-set", "a=b", "--out", "cache"]
    code, err = run("build", shared_dataset, *options)
    assert code == 2 and "--detector-set: expected none with --candidates" in err


def test_the_loop_of_the_page_writes_proposals(shared_dataset, folder, monkeypatch):
    """With annotated boxes of people in place of a model's boxes."""
    (loop,) = [code for code in CODE if "find(image)" in code and "def find" not in code]
    annotations = open_dataset(shared_dataset).load("train").annotations
    boxes = {each.size: each.boxes for each in annotations}

    def find(image):
        assert isinstance(image, Image.Image) and image.mode == "RGB"
        found = boxes[image.size]
        return found.tolist(), np.zeros(len(found)), [0.5] * len(found)

    loop = loop.replace("hico/images", f"{shared_dataset}/images")
    exec(compile(loop, str(PAGE), "exec"), {"find": find})
    entries = json.loads((folder / "detections.json").read_text())
    assert len(entries) >= 14 and {entry["category_id"] for entry in entries} == {1}
    code, err = build(shared_dataset, "--proposals", "detections.json")
    assert code == 0 and f"{len(entries)} detections in 7 of 7 images" in err
