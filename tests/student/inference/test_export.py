"""Exported files run without this package and give the detector's outputs."""

import copy
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline.utils.errors import InputError
from pipeline.vocabulary import vocabulary_from_dict
from student.data.transforms import IMAGENET_MEAN, IMAGENET_STD, normalise
from student.inference import export
from student.inference.export import (
    DECOMPOSITIONS,
    ONNX,
    TORCH_EXPORT,
    DetectorGraph,
    ExportableAttention,
    ExportConfig,
    export_detector,
    linear,
    resize_nearest,
)
from student.inference.model import ModelSpec, load_inference_model
from student.inference.postprocess import select_detections
from student.inference.predictor import Detector
from student.weights.load import load_model

KINDS = ("toy", "published")
ENDINGS = {ONNX: ".onnx", TORCH_EXPORT: ".pt2"}
# (batch, height, width) of the inputs.
SIZES = {"toy": [(1, 128, 128), (3, 64, 104)], "published": [(1, 64, 97), (3, 111, 83)]}
BLOCK = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[4:]))
import json, numpy as np
file, given, exported_outputs = sys.argv[1:4]
inputs = dict(np.load(given))
"""
RUN_ONNX = """
import onnxruntime
session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
texts = session.get_modelmeta().custom_metadata_map
names = [output.name for output in session.get_outputs()]
run = lambda images: dict(zip(names, session.run(None, images)))
"""
RUN_TORCH = """
import torch
extra = {"vocabulary.json": "", "about.json": ""}
module = torch.export.load(file, extra_files=extra).module()
texts = {name.removesuffix(".json"): text for name, text in extra.items()}
run = lambda images: {
    name: value.numpy()
    for name, value in module(*(torch.from_numpy(one) for one in images.values())).items()
}
"""
RUN_ALL = """
results = {}
for number in range(int(inputs["count"])):
    own = {name: inputs[f"{name}{number}"] for name in ("images", "sizes")}
    results.update({f"{name}{number}": value for name, value in run(own).items()})
np.savez(exported_outputs, texts=json.dumps(dict(texts)), **results)
"""


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def checkpoint(request, kind):
    return request.getfixturevalue(f"{kind}_checkpoint")


@pytest.fixture(scope="module")
def traced():
    """Traces each detector once for both formats, since tracing takes most of the time."""
    real, known = export.trace_detector, {}

    def once(loaded):
        if loaded.file not in known:
            known[loaded.file] = real(loaded)
        return known[loaded.file]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "trace_detector", once)
        yield


@pytest.fixture(
    scope="module", params=[pytest.param(form, marks=pytest.mark.slow) for form in ENDINGS]
)
def exported(request, checkpoint, traced, tmp_path_factory):
    if request.param == ONNX:
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package, reason=f"{package} is not installed")
    file = tmp_path_factory.mktemp("export") / f"detector{ENDINGS[request.param]}"
    export_detector(ExportConfig(ModelSpec(checkpoint), request.param, file, False))
    return file


@pytest.fixture(scope="module")
def exported_outputs(exported, kind, tmp_path_factory):
    """Inputs, and the outputs of a process without this package, by name and number."""
    rng = np.random.default_rng(0)
    given = {}
    for number, (batch, height, width) in enumerate(SIZES[kind]):
        given[f"images{number}"] = rng.random((batch, 3, height, width), dtype=np.float32)
        # The first image has no padding, the others do.
        cut = np.arange(batch)
        given[f"sizes{number}"] = np.stack([height - 7 * cut, width - 9 * cut], 1)
    folder = tmp_path_factory.mktemp("exported_outputs")
    np.savez(folder / "given.npz", count=len(SIZES[kind]), **given)
    onnx = exported.suffix == ".onnx"
    blocked = ["student", "pipeline", "evaluation", "teacher_cache", "torchvision"]
    arguments = [
        str(exported),
        str(folder / "given.npz"),
        str(folder / "exported_outputs.npz"),
        *blocked,
    ]
    code = BLOCK + (RUN_ONNX if onnx else RUN_TORCH) + RUN_ALL
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, *(["torch"] if onnx else [])],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return given, dict(np.load(folder / "exported_outputs.npz"))


def test_images_of_a_batch_give_the_outputs_of_single_images(exported_outputs, checkpoint, kind):
    given, outputs = exported_outputs
    model = load_model(checkpoint)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    for number in range(len(SIZES[kind])):
        batch, sizes = given[f"images{number}"], given[f"sizes{number}"]
        images = [
            (torch.from_numpy(image[:, :height, :width]) - mean) / std
            for image, (height, width) in zip(batch, sizes, strict=True)
        ]
        with torch.no_grad():
            expected = [model([image]) for image in images]
        names = [name for name in expected[0] if name.startswith("pred_")]
        assert len(names) == 5
        for name in names:
            ours, theirs = outputs[f"{name}{number}"], torch.cat([one[name] for one in expected])
            assert ours.shape == theirs.shape
            assert np.abs(ours - theirs.numpy()).max() <= 1e-3, name


def test_the_best_interactions_are_decoded(exported_outputs, checkpoint, kind):
    _, outputs = exported_outputs
    loaded = load_inference_model(ModelSpec(checkpoint))
    for number, (batch, _, _) in enumerate(SIZES[kind]):
        scores = outputs[f"scores{number}"]
        assert scores.shape[0] == batch and (np.diff(scores, axis=1) <= 0).all()
        objects = torch.from_numpy(outputs[f"pred_object_logits{number}"]).softmax(-1)[..., :-1]
        verbs = torch.from_numpy(outputs[f"pred_verb_logits{number}"]).sigmoid()
        best, labels = objects.max(-1)
        valid = torch.from_numpy(loaded.vocabulary.valid.T)[labels]
        every = (verbs * best[..., None]).where(valid, torch.tensor(-1.0)).flatten(1)
        expected = every.sort(1, descending=True).values[:, : scores.shape[1]]
        np.testing.assert_allclose(scores, expected, atol=1e-5)
        verb, label = outputs[f"verbs{number}"], outputs[f"labels{number}"]
        assert loaded.vocabulary.valid[verb, label][scores >= 0].all()
        for name in ("human_boxes", "object_boxes"):
            boxes = outputs[f"{name}{number}"]
            assert boxes.shape == (*scores.shape, 4)
            assert (boxes >= 0).all() and (boxes <= 1).all()
            assert (boxes[..., 2:] >= boxes[..., :2]).all()


def test_the_vocabulary_is_contained(exported_outputs, checkpoint):
    texts = json.loads(str(exported_outputs[1]["texts"]))
    loaded = load_inference_model(ModelSpec(checkpoint))
    assert (
        vocabulary_from_dict(json.loads(texts["vocabulary"]), "file").digest()
        == loaded.vocabulary.digest()
    )
    about = json.loads(texts["about"])
    assert about["format"] == "eoid-export-1" and about["unseen"] == sorted(loaded.unseen)
    assert about["side_multiple"] == loaded.model.backbone.size_divisible


def test_no_paths_of_this_machine_are_contained(exported):
    content = exported.read_bytes()
    for folder in (Path(__file__).parents[3], Path(torch.__file__).parents[1]):
        assert str(folder).encode() not in content


def test_invalid_sides_are_refused(exported):
    if exported.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(exported)
        inputs = {one.name: one.shape for one in session.get_inputs()}
        assert inputs.pop("images") == ["batch", 3, "height", "width"]
        assert inputs == {"sizes": ["batch", 2]}
        assert all(one.shape[0] == "batch" for one in session.get_outputs())
    else:
        module = torch.export.load(exported).module()
        with pytest.raises((RuntimeError, AssertionError), match="64"):
            module(torch.zeros(1, 3, 56, 64), torch.tensor([[56, 64]]))


def test_the_readmes_example(exported, kind, toy_checkpoint, write_image, tmp_path):
    if exported.suffix != ".onnx" or kind != "toy":
        return
    blocks = (Path(__file__).parents[3] / "README.md").read_text().split("```python\n")
    (example,) = [block.partition("```")[0] for block in blocks if "onnxruntime" in block]
    shutil.copy(exported, tmp_path / "detector.onnx")
    photo = write_image("photo.jpg", (128, 96), quality=95)
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    best = Detector.open(toy_checkpoint, device="cpu")(photo, threshold=0.3, top=1)
    verb, label, score, *_ = done.stdout.split()
    assert (f"{verb} {label}".replace("_", " "),) == best.actions
    assert float(score) == pytest.approx(best.scores[0], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("form", ENDINGS)
def test_a_wrong_export_is_refused(toy_checkpoint, traced, tmp_path, monkeypatch, form):
    """A tracer may specialise the graph to the traced size."""
    real, file = export.trace_detector, tmp_path / f"a{ENDINGS[form]}"
    file.write_text("an older export")

    def wrong(loaded):
        program, names = real(loaded)
        program = copy.deepcopy(program)
        state, name = program.state_dict, "model.object_head.bias"
        state[name] = torch.nn.Parameter(state[name] + 2, requires_grad=False)
        return program, names

    monkeypatch.setattr(export, "trace_detector", wrong)
    with pytest.raises(InputError, match=rf"{file.name}: .*torch .*pred_object_logits off by"):
        export_detector(
            config(toy_checkpoint, tmp_path, export_format=form, file=file, overwrite=True)
        )
    assert file.read_text() == "an older export" and [*tmp_path.iterdir()] == [file]


@pytest.mark.parametrize("form", ENDINGS)
def test_an_exporter_that_fails(toy_checkpoint, tmp_path, monkeypatch, form):
    def fail(*_):
        raise RuntimeError("\nno such operation\nand a long story")

    monkeypatch.setattr(export, "trace_detector", fail)
    file = tmp_path / f"a{ENDINGS[form]}"
    with pytest.raises(
        InputError, match=rf"{file.name}: torch .*\(RuntimeError: no such operation\)"
    ):
        export_detector(config(toy_checkpoint, tmp_path, export_format=form, file=file))
    assert not any(tmp_path.iterdir())


def config(checkpoint, tmp_path, **changes):
    values = {"export_format": TORCH_EXPORT, "file": tmp_path / "a.pt2", "overwrite": False}
    return ExportConfig(ModelSpec(checkpoint), **{**values, **changes})


def test_an_existing_file_is_refused(toy_checkpoint, tmp_path):
    (tmp_path / "a.pt2").write_text("mine")
    with pytest.raises(InputError, match=r"a.pt2: exists"):
        export_detector(config(toy_checkpoint, tmp_path))
    assert (tmp_path / "a.pt2").read_text() == "mine"


def test_a_folder_is_refused(toy_checkpoint, tmp_path):
    (tmp_path / "a.pt2").mkdir()
    with pytest.raises(InputError, match=r"a.pt2: expected"):
        export_detector(config(toy_checkpoint, tmp_path, overwrite=True))


def test_missing_packages_are_named(toy_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"onnx, onnxscript, onnxruntime"):
        export_detector(config(toy_checkpoint, tmp_path, export_format=ONNX))
    assert not any(tmp_path.iterdir())


@pytest.fixture(params=["toy", "published"])
def loaded(request):
    return load_inference_model(ModelSpec(request.getfixturevalue(f"{request.param}_checkpoint")))


def pixels(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("padded", [False, True])
def test_exportable_attention_equals_multihead_attention(batch, padded):
    attention = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    nn.init.normal_(attention.in_proj_bias)
    queries, keys, values = (torch.randn(batch, length, 16) for length in (5, 7, 7))
    mask = torch.arange(7).expand(batch, 7) >= 4 if padded else None
    with torch.no_grad():
        ours, none = ExportableAttention(attention)(queries, keys, values, mask)
        theirs, _ = attention(queries, keys, values, key_padding_mask=mask, need_weights=False)
    assert none is None
    torch.testing.assert_close(ours, theirs)


def test_the_detector_is_not_changed(loaded):
    before = {name: type(module) for name, module in loaded.model.named_modules()}
    DetectorGraph(loaded)
    assert {name: type(module) for name, module in loaded.model.named_modules()} == before
    assert any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_the_graph_gives_the_detectors_outputs(loaded):
    images = [pixels(3, 64, 96), pixels(3, 64, 96)]
    with torch.no_grad():
        sizes = torch.tensor([[64, 96]] * 2)
        graph = DetectorGraph(loaded)(torch.stack(images).float() / 255, sizes)
        outputs = loaded.model([normalise(image) for image in images])
    for name in ("pred_object_logits", "pred_verb_logits", "pred_human_boxes", "pred_object_boxes"):
        torch.testing.assert_close(graph[name], outputs[name], atol=2e-5, rtol=1e-5)
    expected = select_detections(outputs, ["a", "b"], [(100, 50)] * 2, loaded.vocabulary)
    scale = np.array([100, 50, 100, 50])
    for row, found in enumerate(expected):
        # Rows with a score of -1 are empty.
        count = int((graph["scores"][row] >= 0).sum())
        assert count == len(found.scores)
        np.testing.assert_allclose(graph["scores"][row, :count], found.scores, atol=1e-5)
        best = 10
        humans, objects = (
            graph[name][row, :best].numpy() * scale for name in ("human_boxes", "object_boxes")
        )
        hois = found.hois[:best]
        np.testing.assert_array_equal(graph["verbs"][row, :best], hois[:, 2])
        np.testing.assert_array_equal(graph["labels"][row, :best], found.labels[hois[:, 1]])
        np.testing.assert_allclose(humans, found.boxes[hois[:, 0]], atol=1e-2)
        np.testing.assert_allclose(objects, found.boxes[hois[:, 1]], atol=1e-2)


@pytest.mark.parametrize("frame", [(80, 96), (128, 200)])
def test_outputs_do_not_depend_on_padding(loaded, frame):
    """Neither on its size nor on its values."""
    images = [pixels(3, 64, 93), pixels(3, 79, 72), pixels(3, 33, 50)]
    batch = torch.rand(3, 3, *frame)
    for row, image in enumerate(images):
        batch[row, :, : image.shape[1], : image.shape[2]] = image.float() / 255
    with torch.no_grad():
        found = DetectorGraph(loaded)(batch, torch.tensor([one.shape[1:] for one in images]))
        for row, image in enumerate(images):
            alone = loaded.model([normalise(image)])
            for name in ("pred_object_logits", "pred_verb_logits", "pred_human_boxes"):
                torch.testing.assert_close(found[name][row], alone[name][0], atol=5e-5, rtol=1e-5)
            (expected,) = select_detections(alone, ["a"], [(9, 9)], loaded.vocabulary)
            scores = found["scores"][row, : len(expected.scores)]
            np.testing.assert_allclose(scores, expected.scores, atol=1e-5)


def test_verbs_without_object(loaded):
    """In a vocabulary with roles, a verb without object scores the probability of "no pair"."""
    vocabulary = replace(loaded.vocabulary, roles=({"action": "ride"},))
    with torch.no_grad():
        loaded.model.object_head.bias[-1] += 20
    graph = DetectorGraph(replace(loaded, vocabulary=vocabulary))
    images, sizes = torch.rand(2, 3, 64, 64), torch.tensor([[64, 64]] * 2)
    with torch.no_grad():
        found = graph(images, sizes)
    expected = select_detections(found, ["a", "b"], [(10, 10)] * 2, vocabulary)
    for row, one in enumerate(expected):
        count = len(one.scores)
        labels = np.append(one.labels, -1)[one.hois[:, 1]]
        np.testing.assert_array_equal(found["labels"][row, :count], labels)
        np.testing.assert_array_equal(found["verbs"][row, :count], one.hois[:, 2])
        assert (labels < 0).any()


@pytest.mark.parametrize("old", [(1, 1), (8, 8), (25, 34), (800, 1066)])
@pytest.mark.parametrize("new", [(1, 1), (16, 16), (25, 34), (7, 50), (101, 67)])
def test_resize_nearest_equals_torch(old, new):
    features = torch.randn(2, 3, *old)
    expected = functional.interpolate(features, size=new)
    assert torch.equal(resize_nearest(features, new), expected)


def test_resize_nearest_of_an_empty_batch():
    assert resize_nearest(torch.zeros(0, 3, 4, 5), (8, 8)).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 0, 3), (2, 5, 3)])
@pytest.mark.parametrize("bias", [None, torch.randn(4)])
def test_linear_equals_torch(shape, bias):
    inputs, weight = torch.randn(shape), torch.randn(4, 3)
    expected = functional.linear(inputs, weight, bias)
    torch.testing.assert_close(linear(inputs, weight, bias), expected)


def test_replaced_operations():
    names = {str(operation) for operation in DECOMPOSITIONS}
    # `linear` is replaced only for torch 2.6.
    assert names - {"aten.linear.default"} == {"aten.upsample_nearest2d.vec"}
