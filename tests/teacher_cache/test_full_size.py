"""Full-size models, from files in their published forms, through `eoid-cache build`."""

import json
import sys
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torchvision.models import get_model

from pipeline.vocabulary import load_vocabulary
from teacher_cache.cli import main
from teacher_cache.reader.cache import open_cache
from teacher_cache.teachers.regions import RegionMode, crop_regions_pil

pytestmark = pytest.mark.slow

DETECTOR, CLIP = "fasterrcnn_resnet50_fpn_v2", "ViT-B-32"
OBJECTS = ("horse", "dog")
WIDTH, HEIGHT = 160, 120
# A person beside a horse, and one on it.
PEOPLE = {"a_1.jpg": [20, 10, 60, 110], "b_2.jpg": [60, 5, 100, 80]}
HORSE = [50, 30, 140, 115]


@pytest.fixture(scope="module")
def vocabulary():
    """HICO-DET's objects with the interactions of two of them; all 600 would take a minute."""
    hico = load_vocabulary("hico-det")
    kept = [pair for pair in hico.interactions if hico.objects[pair[1]] in OBJECTS]
    return replace(hico, interactions=tuple(kept), rare=(), splits={})


@pytest.fixture(scope="module")
def dataset(vocabulary, tmp_path_factory):
    """Two images of noise with annotations in HICO-DET's form."""
    root = tmp_path_factory.mktemp("full") / "hico"
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    entries = []
    for name, person in PEOPLE.items():
        pixels = rng.integers(0, 256, (HEIGHT // 10, WIDTH // 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((WIDTH, HEIGHT)).save(root / "images" / name)
        boxes = [{"bbox": person, "category_id": 1}, {"bbox": HORSE, "category_id": 19}]
        verb = vocabulary.verbs.index("ride") + 1
        hois = [{"subject_id": 0, "object_id": 1, "category_id": verb}]
        entries.append({"file_name": name, "annotations": boxes, "hoi_annotation": hois})
    (root / "train.json").write_text(json.dumps(entries))
    (root / "vocabulary.json").write_text(json.dumps(vocabulary.to_dict()))
    (root / "dataset.toml").write_text(
        'vocabulary = "vocabulary.json"\n[train]\nimages = "images"\nannotations = "train.json"\n'
    )
    return root


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Files of a detector and of CLIP with random weights, and the CLIP model."""
    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        detector = get_model(DETECTOR, weights=None, weights_backbone=None).state_dict()
        clip = open_clip.create_model(CLIP).eval()
    # Every box scores high as a person and as a horse, and low as anything else.
    predictor = "roi_heads.box_predictor.cls_score"
    detector[f"{predictor}.weight"][:] = 0
    detector[f"{predictor}.bias"][:] = -4
    detector[f"{predictor}.bias"][[1, 19]] = 4
    torch.save(detector, folder / "detector.pth")
    torch.save({"epoch": 32, "name": "run", "state_dict": clip.state_dict()}, folder / "clip.pt")
    yield folder / "detector.pth", folder / "clip.pt", clip
    for path in folder.iterdir():
        path.unlink()


def test_a_cache_of_full_size_models(dataset, models, vocabulary, tmp_path, monkeypatch, capsys):
    detector, weights, clip = models
    arguments = ["build", dataset, "--out", tmp_path / "cache", "--device", "cpu"]
    arguments += ["--detector", DETECTOR, "--detector-weights", detector]
    arguments += ["--clip-model", CLIP, "--clip-weights", weights]
    arguments += ["--max-people", 2, "--max-objects", 3]
    monkeypatch.setattr(sys, "argv", ["eoid-cache", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0, capsys.readouterr().err
    cache = open_cache(tmp_path / "cache")
    assert cache.image_ids == list(PEOPLE) and not cache.failed
    horse = vocabulary.objects.index("horse")
    for name, person in PEOPLE.items():
        outputs = cache[name]
        pairs = outputs.pairs
        assert pairs.sources[0] == 0 and (pairs.sources[1:] == 1).all() and len(pairs) > 1
        assert pairs.human_boxes[0].tolist() == person and pairs.object_boxes[0].tolist() == HORSE
        assert set(pairs.object_labels.tolist()) == {horse}
        assert outputs.embeddings.shape == (len(outputs.region_boxes), 512)
        np.testing.assert_allclose(outputs.probabilities.sum(1), 1, atol=5e-3)
        scored_verbs = np.flatnonzero(outputs.probabilities[0])
        assert set(scored_verbs) <= set(np.flatnonzero(vocabulary.valid[:, horse]))
    parts = cache.manifest["parts"]
    assert (parts["detector.model"], parts["clip.model"]) == (DETECTOR, CLIP)
    assert parts["clip.quick_gelu"] is False and parts["clip.interpolation"] == "bicubic"
    with Image.open(dataset / "images/b_2.jpg") as image:
        (region,) = crop_regions_pil(image, cache["b_2.jpg"].region_boxes[:1], 224, RegionMode())
    preprocess = open_clip.image_transform(224, is_train=False)
    with torch.no_grad():
        expected = clip.encode_image(preprocess(Image.fromarray(region))[None], normalize=True)
    np.testing.assert_allclose(cache["b_2.jpg"].embeddings[:1], expected.numpy(), atol=2e-3)
