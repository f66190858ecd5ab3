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
from torch.nn import functional

from pipeline.utils.errors import InputError
from pipeline.vocabulary import vocabulary_from_dict
from student.data.transforms import normalise
from student.inference import export
from student.inference.detector import Detector
from student.inference.export import (
    ONNX,
    ONNX_PACKAGES,
    TORCH_EXPORT,
    DetectorGraph,
    export_detector,
    linear,
    resize_nearest,
)
from student.inference.postprocess import select_detections

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


@pytest.fixture(scope="module", params=["toy", "published"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def detector(request, kind):
    return request.getfixturevalue(f"{kind}_detector")


@pytest.fixture(
    scope="module", params=[pytest.param(form, marks=pytest.mark.slow) for form in ENDINGS]
)
def exported(request, detector, traced, tmp_path_factory):
    if request.param == ONNX:
        for package in ONNX_PACKAGES:
            pytest.importorskip(package, reason=f"{package} is not installed")
    file = tmp_path_factory.mktemp("export") / f"detector{ENDINGS[request.param]}"
    export_detector(detector, request.param, file)
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


def test_a_file_gives_the_outputs_of_the_graph(exported_outputs, detector, kind):
    given, outputs = exported_outputs
    names = {"scores", "verbs", "labels", "human_boxes", "object_boxes"}
    for number in range(len(SIZES[kind])):
        inputs = [torch.from_numpy(given[f"{name}{number}"]) for name in ("images", "sizes")]
        with torch.no_grad():
            expected = DetectorGraph(detector)(*inputs)
        assert expected.keys() == names | {n for n in expected if n.startswith("pred_")}
        assert len(expected) == 10
        for name, value in expected.items():
            # The order of the last interactions, which have nearly equal scores, may differ.
            rows = slice(None) if name == "scores" or name.startswith("pred_") else slice(10)
            ours, theirs = outputs[f"{name}{number}"][:, rows], value.numpy()[:, rows]
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3, err_msg=name)


def test_vocabulary_and_metadata(exported_outputs, detector):
    texts = json.loads(str(exported_outputs[1]["texts"]))
    vocabulary = vocabulary_from_dict(json.loads(texts["vocabulary"]), "file")
    assert vocabulary.digest() == detector.vocabulary.digest()
    about = json.loads(texts["about"])
    assert about["format"] == "eoid-export-1" and about["unseen"] == sorted(detector.unseen)
    assert about["side_multiple"] == detector.predictor.model.backbone.size_divisible


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


@pytest.mark.parametrize("kind", ["toy"], indirect=True)
@pytest.mark.parametrize("exported", [ONNX], indirect=True)
@pytest.mark.slow
def test_the_documented_example(exported, detector, write_image, tmp_path):
    blocks = (Path(__file__).parents[3] / "docs/how-to/export.md").read_text().split("```python\n")
    (example,) = [block.partition("```")[0] for block in blocks if "onnxruntime" in block]
    shutil.copy(exported, tmp_path / "detector.onnx")
    photo = write_image("photo.jpg", (128, 96), quality=95)
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    best = detector(photo, threshold=0.3, top=1, no_interaction=True)
    verb, label, score, *_ = done.stdout.split()
    assert (f"{verb} {label}".replace("_", " "),) == best.actions
    assert float(score) == pytest.approx(best.scores[0], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("form", ENDINGS)
def test_a_wrong_export_is_refused(toy_detector, traced, tmp_path, monkeypatch, form):
    """A tracer may specialise the graph to the traced size."""
    real, file = export.trace_detector, tmp_path / f"a{ENDINGS[form]}"
    file.write_text("an older export")

    def wrong(detector):
        program, names = real(detector)
        program = copy.deepcopy(program)
        state, name = program.state_dict, "model.object_head.bias"
        state[name] = torch.nn.Parameter(state[name] + 2, requires_grad=False)
        return program, names

    monkeypatch.setattr(export, "trace_detector", wrong)
    with pytest.raises(InputError, match=rf"{file.name}: .*torch .*pred_object_logits off by"):
        export_detector(toy_detector, form, file, overwrite=True)
    assert file.read_text() == "an older export" and [*tmp_path.iterdir()] == [file]


@pytest.mark.parametrize("form", ENDINGS)
def test_an_exporter_that_fails(toy_detector, tmp_path, monkeypatch, form):
    def fail(*_):
        raise RuntimeError("\nno such operation\nand a long story")

    monkeypatch.setattr(export, "trace_detector", fail)
    message = rf"a{ENDINGS[form]}: torch .*\(RuntimeError: no such operation\)"
    with pytest.raises(InputError, match=message):
        export_detector(toy_detector, form, tmp_path / f"a{ENDINGS[form]}")
    assert not any(tmp_path.iterdir())


def test_files_that_cannot_be_written(toy_detector, tmp_path, monkeypatch):
    (tmp_path / "a.pt2").write_text("mine")
    with pytest.raises(InputError, match=r"a.pt2: exists"):
        export_detector(toy_detector, TORCH_EXPORT, tmp_path / "a.pt2")
    assert (tmp_path / "a.pt2").read_text() == "mine"
    with pytest.raises(InputError, match=r"expected a file name, found a folder"):
        export_detector(toy_detector, TORCH_EXPORT, tmp_path, overwrite=True)
    monkeypatch.setattr("importlib.util.find_spec", {"torch": "found"}.get)
    with pytest.raises(InputError, match=r"needs onnx, onnxscript, onnxruntime"):
        export_detector(toy_detector, ONNX, tmp_path / "a.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt2"]


def pixels(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def test_the_detector_is_not_changed(detector):
    model = detector.predictor.model
    before = {name: type(module) for name, module in model.named_modules()}
    DetectorGraph(detector)
    assert {name: type(module) for name, module in model.named_modules()} == before
    assert any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("frame", [(80, 96), (128, 200)])
def test_the_graph_gives_each_image_the_outputs_that_it_has_alone(detector, frame):
    """Whatever the size and the values of the padding."""
    images = [pixels(3, 64, 93), pixels(3, 79, 72), pixels(3, 33, 50)]
    batch = torch.rand(3, 3, *frame)
    for row, image in enumerate(images):
        batch[row, :, : image.shape[1], : image.shape[2]] = image.float() / 255
    with torch.no_grad():
        found = DetectorGraph(detector)(batch, torch.tensor([one.shape[1:] for one in images]))
        for row, image in enumerate(images):
            alone = detector.predictor.model([normalise(image)])
            for name in ("pred_object_logits", "pred_verb_logits", "pred_human_boxes"):
                torch.testing.assert_close(found[name][row], alone[name][0], atol=5e-5, rtol=1e-5)
            (expected,) = select_detections(alone, ["a"], [(100, 50)], detector.vocabulary)
            # Rows with a score of -1 are empty.
            assert int((found["scores"][row] >= 0).sum()) == len(expected.scores)
            scores = found["scores"][row, : len(expected.scores)]
            np.testing.assert_allclose(scores, expected.scores, atol=1e-5)
            humans, objects, verbs = expected.hois[:10].T
            np.testing.assert_array_equal(found["verbs"][row, :10], verbs)
            np.testing.assert_array_equal(found["labels"][row, :10], expected.labels[objects])
            for name, rows in (("human_boxes", humans), ("object_boxes", objects)):
                boxes = found[name][row, :10].numpy() * [100, 50, 100, 50]
                np.testing.assert_allclose(boxes, expected.boxes[rows], atol=1e-2)


def test_verbs_without_object(published_checkpoint):
    """In a vocabulary with roles, a verb without object scores the probability of "no pair"."""
    predictor = Detector.open(published_checkpoint, "cpu").predictor
    vocabulary = replace(predictor.vocabulary, roles=({"action": "ride"},))
    detector = Detector(replace(predictor, vocabulary=vocabulary), Path("a.pt"), None, None)
    images, sizes = torch.rand(2, 3, 64, 64), torch.tensor([[64, 64]] * 2)
    with torch.no_grad():
        predictor.model.object_head.bias[-1] += 20
        found = DetectorGraph(detector)(images, sizes)
    expected = select_detections(found, ["a", "b"], [(10, 10)] * 2, vocabulary)
    for row, one in enumerate(expected):
        count = len(one.scores)
        labels = np.append(one.labels, -1)[one.hois[:, 1]]
        np.testing.assert_array_equal(found["labels"][row, :count], labels)
        np.testing.assert_array_equal(found["verbs"][row, :count], one.hois[:, 2])
        assert (labels < 0).any()


@pytest.mark.parametrize("old", [(1, 1), (25, 34), (800, 1066)])
@pytest.mark.parametrize("new", [(1, 1), (25, 34), (7, 50), (101, 67)])
def test_resize_nearest_equals_torch(old, new):
    features = torch.randn(2, 3, *old)
    expected = functional.interpolate(features, size=new)
    assert torch.equal(resize_nearest(features, new), expected)
    assert resize_nearest(features[:0], new).shape == (0, 3, *new)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 0, 3), (2, 5, 3)])
@pytest.mark.parametrize("bias", [None, torch.ones(4)])
def test_linear_equals_torch(shape, bias):
    inputs, weight = torch.randn(shape), torch.randn(4, 3)
    expected = functional.linear(inputs, weight, bias)
    torch.testing.assert_close(linear(inputs, weight, bias), expected)
