import json
from pathlib import Path

from student.weights.pretrained import LoadReport

REPORT = LoadReport(
    path=Path("weights/detr.pth"),
    kind="a DETR checkpoint",
    used={
        "backbone.0.body.conv1.weight": ["backbone.body.conv1.weight"],
        "transformer.decoder.layers.0.norm1.bias": [
            "human_object_decoder.layers.0.norm1.bias",
            "interaction_decoder.layers.0.norm1.bias",
        ],
        "class_embed.bias": ["object_head.bias"],
    },
    partial={"object_head": "81 of 92 rows"},
    unused={
        "transformer.decoder.layers.4.norm1.bias": "the student has fewer layers",
        "transformer.decoder.layers.5.norm1.bias": "the student has fewer layers",
        "mask_head.lay1.weight": "the student has no such part",
        "fc.bias": "the student has no such part",
    },
    missing=("verb_head.weight", "verb_head.bias"),
)


def test_nothing_at_all():
    nothing = LoadReport(Path("a.pth"), "an empty file", {}, {}, {}, ())
    assert nothing.lines() == ["start: a.pth, an empty file: 0 of 0 tensors used", "  taken: none"]


def test_parts_are_counted():
    assert REPORT.lines() == [
        "start: detr.pth, a DETR checkpoint: 3 of 7 tensors used",
        "  taken: backbone 1, human_object_decoder 1, interaction_decoder 1, object_head 1",
        "  object_head: 81 of 92 rows",
        "  left, the student has fewer layers: transformer.decoder 2",
        "  left, the student has no such part: mask_head.lay1 1, fc 1",
        "  random: verb_head 2",
    ]


def test_the_whole_account_is_kept():
    value = json.loads(json.dumps(REPORT.to_dict()))
    assert value["file"] == "weights/detr.pth" and value["unused"] == REPORT.unused
    assert value["used"] == REPORT.used and value["random"] == list(REPORT.missing)
