"""A cache of V-COCO's official files, in which some annotated verbs have no object."""

import numpy as np
from PIL import Image

from pipeline.datasets.dataset import open_dataset
from pipeline.vocabulary import load_vocabulary
from teacher_cache.detectors.pairing import annotated_pairs

PERSON, BALL, RACKET = 1, 37, 43
DESCRIPTION = """
name = "v-coco"
vocabulary = "vcoco"
detector = "detector.safetensors"
teacher = "teacher"

[train]
images = "images/train2014"
annotations = "data/vcoco/vcoco_trainval.json"
"""
IMAGES = [
    {
        "boxes": [
            (PERSON, [5, 10, 40, 80]),
            (PERSON, [70, 10, 40, 80]),
            (BALL, [30, 60, 30, 30]),
            (RACKET, [90, 50, 30, 30]),
        ],
        "does": {
            (0, "kick"): (2,),
            (0, "stand"): (),
            (1, "hit"): (3, None),
            (1, "hold"): (3,),
        },
        "size": (128, 128),
    },
    # Without an annotated pair.
    {"boxes": [(PERSON, [5, 10, 40, 80])], "does": {(0, "run"): ()}, "size": (128, 128)},
]


def test_only_pairs_with_an_object_get_outputs(tmp_path, write_vcoco, write_models, build):
    vocabulary = load_vocabulary("vcoco")
    write_vcoco(tmp_path, IMAGES, "trainval")
    image_folder = tmp_path / "images/train2014"
    image_folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in (10, 20):
        pixels = rng.integers(0, 256, (128, 128, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(image_folder / f"COCO_val2014_{number:012}.jpg")
    write_models(tmp_path, vocabulary, context_length=12)
    (tmp_path / "dataset.toml").write_text(DESCRIPTION)
    cache = build(tmp_path)

    file = open_dataset(tmp_path).load("train")
    cache.check(vocabulary, file.digest)
    first, second = (cache[annotation.image_id] for annotation in file.annotations)
    annotated = first.pairs.sources == 0
    expected = annotated_pairs(file.annotations[0])
    assert len(expected) == 2 and annotated.sum() == 2
    np.testing.assert_array_equal(first.pairs.object_boxes[annotated], expected.object_boxes)
    np.testing.assert_allclose(first.probabilities.sum(1), 1, atol=1e-2)
    without_object = [vocabulary.verbs.index(verb) for verb in ("stand", "walk", "run", "smile")]
    assert not first.probabilities[:, without_object].any()
    assert (second.pairs.sources != 0).all()
