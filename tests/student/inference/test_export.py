"""Exported files run where nothing of this project can be imported."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.utils.errors import InputError
from pipeline.vocabulary import vocabulary_from_dict
from student.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from student.inference import export
from student.inference.export import ONNX, TORCH_EXPORT, ExportConfig, export_detector
from student.inference.model import ModelSpec, load_inference_model
from student.inference.predictor import Detector
from student.weights.load import load_model

KINDS = ("toy", "published")
ENDINGS = {ONNX: ".onnx", TORCH_EXPORT: ".pt2"}
# (batch, height, width) of what goes in.
SIZES = {"toy": [(1, 128, 128), (3, 64, 104)], "published": [(1, 64, 97), (3, 111, 83)]}
BLOCK = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[4:]))
import json, numpy as np
file, given, said = sys.argv[1:4]
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
SAY = """
said_of = {}
for number in range(int(inputs["count"])):
    own = {name: inputs[f"{name}{number}"] for name in ("images", "sizes")}
    said_of.update({f"{name}{number}": value for name, value in run(own).items()})
np.savez(said, texts=json.dumps(dict(texts)), **said_of)
"""


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def checkpoint(request, kind):
    return request.getfixturevalue(f"{kind}_checkpoint")


@pytest.fixture(scope="module")
def traced():
    """Both forms of a detector start from one tracing, which takes most of the time."""
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
def said(exported, kind, tmp_path_factory):
    """Inputs by name and number, and what a process without this project makes of them."""
    rng = np.random.default_rng(0)
    given = {}
    for number, (batch, height, width) in enumerate(SIZES[kind]):
        given[f"images{number}"] = rng.random((batch, 3, height, width), dtype=np.float32)
        # The first image fills it, the others leave some padding.
        cut = np.arange(batch)
        given[f"sizes{number}"] = np.stack([height - 7 * cut, width - 9 * cut], 1)
    folder = tmp_path_factory.mktemp("said")
    np.savez(folder / "given.npz", count=len(SIZES[kind]), **given)
    onnx = exported.suffix == ".onnx"
    blocked = ["student", "pipeline", "evaluation", "teacher_cache", "torchvision"]
    words = [str(exported), str(folder / "given.npz"), str(folder / "said.npz"), *blocked]
    code = BLOCK + (RUN_ONNX if onnx else RUN_TORCH) + SAY
    done = subprocess.run(
        [sys.executable, "-c", code, *words, *(["torch"] if onnx else [])],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return given, dict(np.load(folder / "said.npz"))


def test_every_image_of_a_batch_is_answered_as_alone(said, checkpoint, kind):
    given, outputs = said
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


def test_the_best_interactions_are_decoded(said, checkpoint, kind):
    _, outputs = said
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


def test_the_vocabulary_is_inside(said, checkpoint):
    texts = json.loads(str(said[1]["texts"]))
    loaded = load_inference_model(ModelSpec(checkpoint))
    assert (
        vocabulary_from_dict(json.loads(texts["vocabulary"]), "file").digest()
        == loaded.vocabulary.digest()
    )
    about = json.loads(texts["about"])
    assert about["format"] == "eoid-export-1" and about["unseen"] == sorted(loaded.unseen)
    assert about["side_multiple"] == loaded.model.backbone.side_multiple


def test_nothing_of_this_machine_is_inside(exported):
    content = exported.read_bytes()
    for folder in (Path(__file__).parents[3], Path(torch.__file__).parents[1]):
        assert str(folder).encode() not in content


def test_it_tells_or_refuses_sides(exported):
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
    """As by a tracer that takes the traced size for a constant."""
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
        export_detector(config(toy_checkpoint, tmp_path, format=form, file=file, overwrite=True))
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
        export_detector(config(toy_checkpoint, tmp_path, format=form, file=file))
    assert not any(tmp_path.iterdir())


def config(checkpoint, tmp_path, **changes):
    values = {"format": TORCH_EXPORT, "file": tmp_path / "a.pt2", "overwrite": False}
    return ExportConfig(ModelSpec(checkpoint), **{**values, **changes})


def test_a_file_in_the_way(toy_checkpoint, tmp_path):
    (tmp_path / "a.pt2").write_text("mine")
    with pytest.raises(InputError, match=r"a.pt2: exists"):
        export_detector(config(toy_checkpoint, tmp_path))
    assert (tmp_path / "a.pt2").read_text() == "mine"


def test_a_folder_in_the_way(toy_checkpoint, tmp_path):
    (tmp_path / "a.pt2").mkdir()
    with pytest.raises(InputError, match=r"a.pt2: expected"):
        export_detector(config(toy_checkpoint, tmp_path, overwrite=True))


def test_without_the_packages(toy_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"onnx, onnxscript, onnxruntime"):
        export_detector(config(toy_checkpoint, tmp_path, format=ONNX))
    assert not any(tmp_path.iterdir())
