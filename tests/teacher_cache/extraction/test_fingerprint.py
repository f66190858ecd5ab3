from dataclasses import replace
from types import SimpleNamespace

from pipeline.vocabulary import load_vocabulary
from teacher_cache.detectors.base import ObjectDetector
from teacher_cache.detectors.pairing import PairingConfig
from teacher_cache.detectors.torchvision import TorchvisionDetector
from teacher_cache.extraction.extract import ExtractionConfig
from teacher_cache.extraction.inputs import fingerprint_parts
from teacher_cache.reader.fingerprint import compute_fingerprint
from teacher_cache.teachers.clip import ClipTeacher
from teacher_cache.teachers.regions import RegionMode

CLIP_FIELDS = ("quick_gelu", "image_size", "interpolation", "precision", "mean", "std")
CLIP = {"name": "ViT-B-32", "weights_digest": "1", **dict.fromkeys(CLIP_FIELDS, "same")}
DETECTOR = {"name": "ssd300_vgg16", "weights_digest": "2", "class_names": None}
OBJECTS = load_vocabulary("toy")
PAIRING = PairingConfig(0.2, 0.2, 15, 15)
EXTRACTION = ExtractionConfig(pairing=PAIRING)
DATA = {"vocabulary": "3", "annotations": "4", "part": "train", "proposals": None}


def make_parts(clip=(), detector=(), data=(), prompts=(("a", "b"),), **extraction):
    """Parts of the default settings with changes; without a detector if it is None."""
    values = {**DATA, **dict(data)}
    annotations = SimpleNamespace(digest=values["annotations"], part=values["part"])
    proposals = values["proposals"] and SimpleNamespace(digest=values["proposals"])
    vocabulary = SimpleNamespace(digest=lambda: values["vocabulary"])

    def model(kind, defaults, changes):
        fake = kind.__new__(kind)
        vars(fake).update({**defaults, **dict(changes)})
        return fake

    return fingerprint_parts(
        SimpleNamespace(vocabulary=vocabulary, annotations=annotations, proposals=proposals),
        detector
        if detector is None
        else ObjectDetector(
            model(TorchvisionDetector, {**DETECTOR, "classes": OBJECTS.objects}, detector), OBJECTS
        ),
        model(ClipTeacher, CLIP, clip),
        prompts,
        replace(EXTRACTION, **extraction),
    )


CHANGES = {
    "clip.model": {"clip": {"name": "other"}},
    "clip.weights": {"clip": {"weights_digest": "other"}},
    **{f"clip.{name}": {"clip": {name: "other"}} for name in CLIP_FIELDS},
    "detector.model": {"detector": {"name": "other"}},
    "detector.weights": {"detector": {"weights_digest": "other"}},
    **{name: {"data": {name: "other"}} for name in ("vocabulary", "annotations", "part")},
    **{name: {"pairing": replace(PAIRING, **{name: 1})} for name in vars(PAIRING)},
    "level": {"level": "image"},
    "region": {"region": RegionMode("context=1.5", 1.5)},
    "prompts": {"prompts": (("a",),)},
}


def test_a_fingerprint_depends_on_content_not_order():
    assert compute_fingerprint({"a": 1, "b": 2}) == compute_fingerprint({"b": 2, "a": 1})
    assert compute_fingerprint({"a": 1}) != compute_fingerprint({"a": 2})


def test_every_setting_that_changes_outputs_is_a_part():
    parts = make_parts()
    assert parts.keys() == {"format_version", "candidates", *CHANGES}
    for name, change in CHANGES.items():
        changed = make_parts(**change)
        assert {name for name in parts if parts[name] != changed[name]} == {name}
        assert changed.keys() == parts.keys()
    assert make_parts(images_per_batch=1, regions_per_batch=1, strict=True) == parts


def test_class_names_of_a_detector_are_a_part_if_given():
    first, second, none = (
        make_parts(detector={"class_names": names}) for names in (("dog", "person"), ("cat",), None)
    )
    assert first.keys() - none.keys() == {"detector.classes"}
    assert list(first)[list(first).index("prompts") - 1] == "detector.classes"
    assert first.pop("detector.classes") != second.pop("detector.classes")
    assert first == second == none


def test_the_source_of_boxes_is_a_part():
    detector, annotated = make_parts(), make_parts(detector=None)
    proposals, others = (
        make_parts(detector=None, data={"proposals": digest}) for digest in ("5" * 64, "6" * 64)
    )
    sources = [parts["candidates"] for parts in (detector, proposals, annotated)]
    assert sources == ["detector", "proposals", "annotated"]
    assert detector.keys() - proposals.keys() == {"detector.model", "detector.weights"}
    assert proposals.keys() - annotated.keys() == {"proposals", *vars(PAIRING)}
    assert others["proposals"] != proposals["proposals"]
