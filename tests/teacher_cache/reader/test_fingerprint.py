from types import SimpleNamespace

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
LIMITS = ("person_threshold", "object_threshold", "max_people", "max_objects")
PAIRING = dict.fromkeys(LIMITS, 1)
OTHERS = {"vocabulary": "3", "annotations": "4", "part": "train", "level": "region"}
OTHERS |= {"region": "pad", "prompts": (("a", "b"),)}


def make_parts(clip=(), detector=(), pairing=(), **changes):
    """Parts of the default settings with changes of models, pairing and others."""
    models = [
        kind.fingerprint_parts(SimpleNamespace(**{**defaults, **dict(given)}))
        for kind, defaults, given in (
            (ClipTeacher, CLIP, clip),
            (Detector, DETECTOR, detector or ()),
        )
    ]
    return fingerprint_parts(
        clip=models[0],
        detector=None if detector is None else models[1],
        proposals=changes.pop("proposals", None),
        pairing={**PAIRING, **dict(pairing)},
        **{**OTHERS, **changes},
    )


def test_a_fingerprint_depends_on_content_not_order():
    assert compute_fingerprint({"a": 1, "b": 2}) == compute_fingerprint({"b": 2, "a": 1})
    assert compute_fingerprint({"a": 1}) != compute_fingerprint({"a": 2})


CHANGES = [
    *({"clip": {name: "other"}} for name in CLIP),
    *({"detector": {name: "other"}} for name in ("name", "weights_digest")),
    *({"pairing": {name: 2}} for name in LIMITS),
    *({name: "other"} for name in OTHERS),
]


def test_every_setting_that_changes_outputs_is_a_part_of_its_own():
    parts, changed = make_parts(), set()
    for change in CHANGES:
        other = make_parts(**change)
        assert other.keys() == parts.keys()
        (name,) = [name for name in parts if parts[name] != other[name]]
        changed.add(name)
    constant = {"format_version", "candidates"}
    assert changed == parts.keys() - constant and len(changed) == len(CHANGES)


def test_class_names_of_a_detector_are_a_part_if_given():
    first, second, none = (
        make_parts(detector={"classes": names}) for names in (("dog", "person"), ("cat",), None)
    )
    assert first.keys() - none.keys() == {"detector.classes"}
    assert list(first)[list(first).index("prompts") - 1] == "detector.classes"
    assert first.pop("detector.classes") != second.pop("detector.classes")
    assert first == second == none


def test_the_source_of_boxes_is_a_part():
    detector = make_parts()
    proposals = make_parts(detector=None, proposals="5" * 64)
    annotated = make_parts(detector=None)
    sources = [parts["candidates"] for parts in (detector, proposals, annotated)]
    assert sources == ["detector", "proposals", "annotated"]
    assert detector.keys() - proposals.keys() == {"detector.model", "detector.weights"}
    assert proposals.keys() - annotated.keys() == {"proposals", *PAIRING}
    other = make_parts(detector=None, proposals="6" * 64)
    assert other["proposals"] != proposals["proposals"]
