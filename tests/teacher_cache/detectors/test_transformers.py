"""Small models of transformers with random weights, saved as on the hub."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from commands import run_command
from PIL import Image
from safetensors.torch import load_file, save_file

from pipeline.utils.errors import InputError
from pipeline.vocabulary import load_vocabulary
from teacher_cache.cli import main
from teacher_cache.detectors.base import DetectorConfig
from teacher_cache.detectors.load import load_detector
from teacher_cache.reader.cache import open_cache

transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")
pytestmark = pytest.mark.usefixtures("offline")

CPU = torch.device("cpu")
COMMON = {
    "backbone": None,
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "d_model": 16,
    "num_queries": 8,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
}
RESNET = {
    "embedding_size": 8,
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}
STAGES = ["stage2", "stage3", "stage4"]
RT_DETR = {
    **COMMON,
    "encoder_hidden_dim": 16,
    "decoder_in_channels": [16, 16, 16],
    "anchor_image_size": None,
}


def make_detr(**names):
    backbone = transformers.ResNetConfig(**RESNET, out_features=["stage4"])
    config = transformers.DetrConfig(**COMMON, backbone_config=backbone, **names)
    size = {"shortest_edge": 64, "longest_edge": 96}
    return transformers.DetrForObjectDetection(config), transformers.DetrImageProcessor(size=size)


def make_rt_detr_v2(**names):
    backbone = transformers.RTDetrResNetConfig(**RESNET, out_features=STAGES)
    config = transformers.RTDetrV2Config(
        **RT_DETR, backbone_config=backbone, encoder_in_channels=[8, 16, 16], **names
    )
    model = transformers.RTDetrV2ForObjectDetection(config)
    return model, transformers.RTDetrImageProcessor(size={"height": 64, "width": 64})


def make_d_fine(**names):
    backbone = transformers.HGNetV2Config(
        stem_channels=[3, 8, 8],
        stage_in_channels=[8, 16, 16, 16],
        stage_mid_channels=[8] * 4,
        stage_out_channels=[16] * 4,
        stage_num_blocks=[1] * 4,
        stage_numb_of_layers=[1] * 4,
        stage_downsample=[False, True, True, True],
        stage_light_block=[False] * 4,
        stage_kernel_size=[3] * 4,
        embedding_size=8,
        hidden_sizes=[16] * 4,
        depths=[1] * 4,
        out_features=STAGES,
    )
    config = transformers.DFineConfig(
        **RT_DETR, backbone_config=backbone, encoder_in_channels=[16] * 3, **names
    )
    model = transformers.DFineForObjectDetection(config)
    return model, transformers.RTDetrImageProcessor(size={"height": 64, "width": 64})


MAKERS = {"detr": make_detr, "rt_detr_v2": make_rt_detr_v2, "d_fine": make_d_fine}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, vocabulary):
    """Folders of the models, by their architecture."""
    root = tmp_path_factory.mktemp("models")
    id2label = dict(enumerate(vocabulary.objects))
    names = {"id2label": id2label, "label2id": {name: n for n, name in id2label.items()}}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for name, make in MAKERS.items():
            model, processor = make(**names)
            model.save_pretrained(root / name)
            processor.save_pretrained(root / name)
    return {name: root / name for name in MAKERS}


def load(folder, vocabulary, **options):
    return load_detector(DetectorConfig(f"hf:{folder}", **options), vocabulary, CPU)


def noise(width, height, count=1):
    rng = np.random.default_rng(0)
    shape = (height, width, 3)
    return [Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for _ in range(count)]


def edit_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("name", MAKERS)
def test_detections_equal_those_of_transformers_for_single_images(folders, vocabulary, name):
    detector = load(folders[name], vocabulary, score_threshold=0.0)
    assert detector.name == f"hf:{name}"
    assert detector.missing_objects == detector.other_classes == ()
    images = noise(100, 60, count=3)
    found = detector.detect(images)
    model = transformers.AutoModelForObjectDetection.from_pretrained(folders[name]).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folders[name])
    for image, boxes in zip(images, found, strict=True):
        with torch.inference_mode():
            outputs = model(**processor(images=image, return_tensors="pt"))
        (expected,) = processor.post_process_object_detection(outputs, 0.0, [(60, 100)])
        order, own_order = (-expected["scores"]).argsort(stable=True), (-boxes.scores).argsort()
        assert len(order) == len(own_order) > 0
        np.testing.assert_allclose(boxes.scores[own_order], expected["scores"][order], atol=1e-5)
        # The boxes in the order of their positions, because several scores may be equal.
        expected_boxes = expected["boxes"].numpy().clip(0, [100, 60, 100, 60])
        first, second = (
            each[np.lexsort(each.T.round(1))] for each in (boxes.boxes, expected_boxes)
        )
        np.testing.assert_allclose(first, second, atol=1e-2)


@pytest.mark.parametrize("name", ["detr", "d_fine"])
def test_images_of_any_shape(folders, vocabulary, name):
    """Three pixels could be taken for three channels."""
    detector = load(folders[name], vocabulary, score_threshold=0.0)
    for size in [(3, 50), (50, 3), (1, 1), (3, 3), (2000, 6)]:
        first, second = detector.detect(noise(*size, count=2))
        assert (first.boxes >= 0).all() and (first.boxes <= [*size, *size]).all()
        (alone,) = detector.detect(noise(*size, count=2)[1:])
        np.testing.assert_allclose(second.boxes, alone.boxes, atol=1e-3)


def test_an_emulated_gpu_finds_the_same(folders, vocabulary, emulate_cuda):
    (expected,) = load(folders["rt_detr_v2"], vocabulary, score_threshold=0.0).detect(noise(64, 64))
    config = DetectorConfig(f"hf:{folders['rt_detr_v2']}", score_threshold=0.0)
    with emulate_cuda() as gpu:
        (found,) = load_detector(config, vocabulary, torch.device("cuda", 0)).detect(noise(64, 64))
    assert gpu.kernels.total() > 0
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)
    np.testing.assert_array_equal(found.labels, expected.labels)


def test_the_threshold(folders, vocabulary):
    (everything,) = load(folders["detr"], vocabulary, score_threshold=0.0).detect(noise(64, 64))
    cut = float(np.median(everything.scores))
    (best,) = load(folders["detr"], vocabulary, score_threshold=cut).detect(noise(64, 64))
    np.testing.assert_array_equal(best.scores, everything.scores[everything.scores > cut])


def test_names_of_classes(folder, vocabulary):
    """Unused ids of COCO's numbering are no names, and VOC's spelling of a name is known."""
    names = ["N/A", "person", "motorbike", "horse", "zebra", "N/A", "tree", "N/A", "chair"]
    edit_config(folder, id2label=dict(enumerate(names)))
    coco = load_vocabulary("hico-det")
    detector = load(folder, coco)
    assert detector.other_classes == ("tree",)
    assert detector.spellings == {"motorbike": "motorcycle"}
    assert len(detector.missing_objects) == 80 - 5
    given = load(folder, coco, classes=(*names[:6], "dog", *names[7:]))
    assert "dog" not in given.missing_objects
    digests = [each.fingerprint_parts()["detector.classes"] for each in (detector, given)]
    assert digests[0] != digests[1]
    with pytest.raises(InputError, match=r"--detector-classes: expected 9 names, .* found 2"):
        load(folder, vocabulary, classes=("person", "dog"))
    with pytest.raises(InputError, match="--detector-classes: expected a detector that finds peop"):
        load(folder, vocabulary, classes=("dog",) * 9)
    edit_config(folder, id2label={str(n): f"LABEL_{n}" for n in range(9)})
    with pytest.raises(InputError, match=r"--detector: .* finds people, .* LABEL_0, LABEL_1"):
        load(folder, vocabulary)


def test_the_fingerprint_depends_on_weights_and_settings(folder, vocabulary):
    first = load(folder, vocabulary).fingerprint_parts()
    assert first.keys() == {f"detector.{n}" for n in ("model", "weights", "settings", "classes")}
    edit_config(folder, transformers_version="4.0.0", _name_or_path="elsewhere")
    assert load(folder, vocabulary).fingerprint_parts() == first
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "image_mean": [0.5] * 3}))
    second = load(folder, vocabulary).fingerprint_parts()
    assert {name for name in first if first[name] != second[name]} == {"detector.settings"}
    weights = load_file(folder / "model.safetensors")
    weights["class_labels_classifier.bias"][0] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    third = load(folder, vocabulary).fingerprint_parts()
    assert {name for name in first if third[name] != second[name]} == {"detector.weights"}


def drop_a_tensor(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["class_labels_classifier.bias"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def drop_a_row(folder):
    weights = load_file(folder / "model.safetensors")
    weights["class_labels_classifier.bias"] = weights["class_labels_classifier.bias"][1:].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def make_infinite(folder):
    weights = load_file(folder / "model.safetensors")
    weights["class_labels_classifier.bias"][0] = torch.inf
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


class Harmful:
    def __reduce__(self):
        return print, ("code of a weights file",)


def pickle_weights(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Harmful()}))


def add_code(folder):
    (folder / "own.py").write_text("print('code of a folder')\nclass Config: pass\n")
    auto_map = {"AutoConfig": "own.Config", "AutoModelForObjectDetection": "own.Config"}
    edit_config(folder, model_type="own", auto_map=auto_map)


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (drop_a_tensor, "--detector: .* none for 1 tensors, first class_labels_classifier.bias"),
        (drop_a_row, r"class_labels_classifier.bias: expected shape \(10,\), as in .* found "),
        (make_infinite, "class_labels_classifier.bias: expected finite numbers, found 1 of"),
        (pickle_weights, "--detector: expected hf: with an object detector"),
        (add_code, "--detector: expected hf: with an object detector"),
        (lambda folder: (folder / "config.json").unlink(), "--detector: expected hf: with"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "--detector: expected hf:"),
        (lambda folder: edit_config(folder, model_type="clip"), "--detector: expected hf: with"),
        (lambda folder: (folder / "config.json").write_text("{"), "--detector: expected hf: with"),
        (shutil.rmtree, "--detector: expected hf: with"),
    ],
)
def test_wrong_folders(folder, vocabulary, edit, text, capfd):
    edit(folder)
    with pytest.raises(InputError, match=text) as caught:
        load(folder, vocabulary)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"image_mean": "x"}, "(Type|Value)Error"),
        ({"image_processor_type": "CLIPImageProcessor"}, "no attribute 'post_process_object_dete"),
        ({"size": {"shortest_edge": 0, "longest_edge": 0}}, "ValueError"),
    ],
)
def test_image_processors_that_fail(folder, vocabulary, changes, text):
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(InputError, match=f"--detector: expected hf: with .*{text}") as caught:
        load(folder, vocabulary).detect(noise(64, 64))
    assert "\n" not in str(caught.value)


def test_a_folder_has_no_revisions(folder, vocabulary):
    with pytest.raises(InputError, match=r"--detector: expected no revision of the folder .* v2$"):
        load(folder, vocabulary, settings=(("revision", "v2"),))


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("owner/absent", {}, "found hf:owner/absent"),
        ("absent", {}, "found hf:absent"),
        ("not a name", {}, "found hf:not a name"),
        ("", {}, "found hf: "),
        ("owner/absent", {"weights": "COCO_V1"}, "--detector-weights: expected none with hf:owner"),
        (
            "owner/absent",
            {"settings": (("size", "3"),)},
            r"--detector-set: .*\(revision\), found size",
        ),
    ],
)
def test_wrong_names_without_a_network(vocabulary, name, options, text, capfd):
    with pytest.raises(InputError, match=text) as caught:
        load(name, vocabulary, **options)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def build(dataset, out, *options):
    words = ["build", dataset, "--out", out, "--device", "cpu", "--images-per-shard", 3]
    thresholds = ["--person-threshold", 0.05, "--object-threshold", 0.05, "--max-people", 2]
    done = run_command(main, "eoid-cache", *words, *thresholds, *options)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_a_build_is_resumed_and_repaired(
    shared_dataset, folders, tmp_path, contents, monkeypatch, vocabulary
):
    monkeypatch.chdir(folders["detr"].parent)
    out = tmp_path / "cache"
    build(shared_dataset, out, "--detector", "hf:detr")
    cache, before = open_cache(out), contents(out)
    assert sum(len(cache[image_id].pairs) for image_id in cache.image_ids) > 10
    assert cache.manifest["settings"]["detector"] == f"hf:{folders['detr']}"
    (out / "shards/00001.h5").unlink()
    (out / "manifest.json").unlink()
    monkeypatch.chdir(tmp_path)
    # Another batch size, so that other images stand in a batch.
    batches = ["--set", "detector-batch-size=2"]
    assert "resuming" in build(shared_dataset, out, "--detector", f"hf:{folders['detr']}", *batches)
    resumed = open_cache(out)
    assert resumed.fingerprint == cache.fingerprint
    for image_id in cache.image_ids:
        first, second = cache[image_id], resumed[image_id]
        np.testing.assert_allclose(first.pairs.human_boxes, second.pairs.human_boxes, atol=1e-3)
        np.testing.assert_allclose(first.probabilities, second.probabilities, atol=2e-3)
    shard = out / "shards/00000.h5"
    shard.write_bytes(shard.read_bytes()[:-9])
    assert run_command(main, "eoid-cache", "verify", out, "--repair").returncode == 0
    assert contents(out)[1]["00000.h5"] == before[1]["00000.h5"]


def test_rotated_copies_give_equal_caches(
    shared_dataset, folders, turned_twins, tmp_path, vocabulary
):
    upright, stored = turned_twins(shared_dataset, tmp_path / "twins", "train")
    caches = []
    for root in (upright, stored):
        out = tmp_path / f"{root.name}-cache"
        build(root, out, "--detector", f"hf:{folders['detr']}", "--no-embeddings")
        caches.append(open_cache(out))
    for name in caches[0].image_ids:
        first, second = (cache[name] for cache in caches)
        np.testing.assert_array_equal(first.pairs.human_boxes, second.pairs.human_boxes)
        np.testing.assert_array_equal(first.pairs.object_labels, second.pairs.object_labels)


@pytest.mark.slow
def test_two_workers(shared_dataset, folders, tmp_path, contents, monkeypatch):
    monkeypatch.chdir(folders["detr"].parent)
    for out, workers in {"one": 0, "two": 2}.items():
        build(shared_dataset, tmp_path / out, "--detector", "hf:detr", "--workers", workers)
    first, second = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert first[0]["fingerprint"] == second[0]["fingerprint"]
    assert first[0]["counts"] == second[0]["counts"]
