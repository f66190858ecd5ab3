from types import SimpleNamespace

import pytest

from teacher_cache.detectors.torchvision import Detector
from teacher_cache.reader.fingerprint import compute_fingerprint, fingerprint_parts
from teacher_cache.teachers.clip import ClipTeacher

CLIP = {
    "name": "ViT-B-32",
    "weights_digest": "1",
    "quick_gelu": False,
    "image_size": 224,
    "interpolation": "bicubic",
    "precision": "float32",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
}
DETECTOR = {"name": "ssd300_vgg16", "weights_digest": "2", "classes": None}
PAIRING = {
    "person_threshold": 0.2,
    "object_threshold": 0.2,
    "max_people": 15,
    "max_objects": 15,
}


def clip_parts(**changes):
    return ClipTeacher.fingerprint_parts(SimpleNamespace(**{**CLIP, **changes}))


def detector_parts(**changes):
    return Detector.fingerprint_parts(SimpleNamespace(**{**DETECTOR, **changes}))


def make_parts(**changes):
    values = {
        "vocabulary": "3",
        "annotations": "4",
        "part": "train",
        "detector": detector_parts(),
        "proposals": None,
        "pairing": PAIRING,
        "prompts": (("a", "b"),),
        "clip": clip_parts(),
        "level": "region",
        "region": "pad",
    }
    return fingerprint_parts(**{**values, **changes})


def test_a_fingerprint_depends_on_content_not_order():
    assert compute_fingerprint({"a": 1, "b": 2}) == compute_fingerprint({"b": 2, "a": 1})
    assert compute_fingerprint({"a": 1}) != compute_fingerprint({"a": 2})


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"clip": clip_parts(name="ViT-B-16")}, "clip.model"),
        ({"clip": clip_parts(weights_digest="9")}, "clip.weights"),
        ({"clip": clip_parts(quick_gelu=True)}, "clip.quick_gelu"),
        ({"clip": clip_parts(image_size=256)}, "clip.image_size"),
        ({"clip": clip_parts(interpolation="bilinear")}, "clip.interpolation"),
        ({"clip": clip_parts(precision="float16")}, "clip.precision"),
        ({"clip": clip_parts(mean=(0.4, 0.5, 0.5))}, "clip.mean"),
        ({"clip": clip_parts(std=(0.4, 0.5, 0.5))}, "clip.std"),
        ({"detector": detector_parts(name="toy")}, "detector.model"),
        ({"detector": detector_parts(weights_digest="9")}, "detector.weights"),
        ({"vocabulary": "9"}, "vocabulary"),
        ({"annotations": "9"}, "annotations"),
        ({"part": "test"}, "part"),
        ({"pairing": {**PAIRING, "person_threshold": 0.3}}, "person_threshold"),
        ({"pairing": {**PAIRING, "object_threshold": 0.3}}, "object_threshold"),
        ({"pairing": {**PAIRING, "max_people": 3}}, "max_people"),
        ({"pairing": {**PAIRING, "max_objects": 3}}, "max_objects"),
        ({"level": "image"}, "level"),
        ({"region": "context=1.5"}, "region"),
        ({"prompts": (("a",),)}, "prompts"),
    ],
)
def test_every_setting_that_changes_outputs_is_a_part(changes, part):
    parts, changed = make_parts(), make_parts(**changes)
    assert {name for name in parts if parts[name] != changed[name]} == {part}
    assert changed.keys() == parts.keys()


def test_class_names_of_a_detector_are_a_part_if_given():
    first, second, none = (
        make_parts(detector=detector_parts(classes=names))
        for names in (("dog", "person"), ("cat",), None)
    )
    assert first.keys() - none.keys() == {"detector.classes"}
    assert list(first)[list(first).index("prompts") - 1] == "detector.classes"
    assert first.pop("detector.classes") != second.pop("detector.classes")
    assert first == second == none


def test_the_source_of_boxes_is_a_part():
    detector = make_parts()
    proposals = make_parts(detector=None, proposals="5" * 64)
    annotated = make_parts(detector=None)
    assert detector["candidates"] == "detector"
    assert proposals["candidates"] == "proposals"
    assert annotated["candidates"] == "annotated"
    assert detector.keys() - proposals.keys() == {"detector.model", "detector.weights"}
    assert proposals.keys() - annotated.keys() == {"proposals", *PAIRING}
    other = make_parts(detector=None, proposals="6" * 64)
    assert other["proposals"] != proposals["proposals"]
