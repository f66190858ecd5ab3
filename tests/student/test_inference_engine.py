"""All commands predict an image as the model alone does, whatever other images there are."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from evaluation.hico.nms import NmsConfig, pairwise_nms
from evaluation.predictions import read_predictions
from pipeline.datasets.dataset import open_dataset
from pipeline.images import read_image
from pipeline.splits import load_split
from pipeline.types import Detections
from pipeline.utils.files import read_json, write_json
from student.data.transforms import normalise
from student.engine.evaluate import evaluate_checkpoint
from student.engine.run import run_student
from student.engine.run_inputs import build_inputs
from student.inference.detector import Detector
from student.inference.postprocess import SelectionConfig, select_detections
from student.inference.predict_dataset import predict_dataset
from student.inference.predict_images import predict_images
from student.inference.predict_shards import ShardConfig
from student.models.detector import HOIDetector
from student.utils.distributed import SINGLE_PROCESS, Execution
from student.weights.checkpoint_file import Checkpoint, load_checkpoint, save_checkpoint
from student.weights.load import load_model

CPU = torch.device("cpu")
# Widths and heights of the toy dataset and of other shapes, unsorted.
SIZES = [(128, 128), (96, 64), (75, 100), (128, 128), (131, 90), (96, 64), (64, 96), (75, 100)]
RECIPE = {"epochs": 1, "batch_size": 8, "val_size": 4, "precision": "float32"}
QUERIES = {
    "proposals": {},
    "learned": {"queries": "learned", "backbone": "resnet18", "hidden_dim": 32, "num_queries": 6},
}


@pytest.fixture(scope="module")
def mixed(dataset_root, tmp_path_factory):
    """The tiny dataset with test images of many sizes."""
    root = tmp_path_factory.mktemp("mixed") / "data"
    shutil.copytree(dataset_root, root)
    file = root / "annotations/test_hico.json"
    old, entries = read_json(file), []
    for row, (width, height) in enumerate(SIZES):
        entry = json.loads(json.dumps(old[row % len(old)]))
        picture = Image.open(root / "images/test2015" / entry["file_name"])
        entry |= {"file_name": f"picture {row}.png", "width": width, "height": height}
        for one in entry["annotations"]:
            one["bbox"] = (np.array(one["bbox"]) / 128 * [width, height, width, height]).tolist()
        picture.resize((width, height)).save(root / "images/test2015" / entry["file_name"])
        entries.append(entry)
    write_json(file, entries)
    return root


@pytest.fixture(scope="module", params=QUERIES)
def configured(request, mixed, configure_run, vocabulary, tiny_recipe, tmp_path_factory):
    folder, queries = tmp_path_factory.mktemp("runs"), QUERIES[request.param]
    recipe = tiny_recipe.override(**queries)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = HOIDetector(recipe.model)
        # Gives every query valid interactions, with distinct scores.
        torch.nn.init.normal_(model.verb_head.weight, std=0.5)
        model.object_head.bias.data[int(vocabulary.valid.sum(0).argmax())] = 4.0
    split = load_split(vocabulary, "ua")
    start = Checkpoint(recipe, vocabulary, split, model.state_dict(), {})
    save_checkpoint(folder / "start.pt", start)
    options = {**RECIPE, **queries}
    return configure_run(folder / "run", data=mixed, pretrained=folder / "start.pt", **options)


@pytest.fixture(scope="module")
def run(configured):
    """A run folder with the results of its final evaluation."""
    run_student(configured)
    return configured.out


@pytest.fixture(scope="module")
def detector(run):
    return Detector.open(run, device="cpu")


@pytest.fixture(scope="module")
def expected(run, detector, mixed):
    """Detections of every image by the model alone."""
    model, found = load_model(run), {}
    for path in image_paths(mixed):
        image = read_image(path)
        with torch.no_grad():
            outputs = model([normalise(pil_to_tensor(image))])
        (found[path.name],) = select_detections(
            outputs, [path.name], [image.size], detector.vocabulary
        )
    assert sum(far_apart(one.scores).sum() for one in found.values()) > 100
    return found


def image_paths(root):
    return [root / "images/test2015" / f"picture {row}.png" for row in range(len(SIZES))]


def assert_same(found, expected):
    """Scores are equal to 1e-5, and in the same order where they differ by more."""
    np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=1e-5)
    clear = far_apart(expected.scores)
    for one, other in zip(triplets(found), triplets(expected), strict=True):
        np.testing.assert_allclose(one[clear], other[clear], rtol=0, atol=2e-3)


def far_apart(scores):
    """(K,) bool, whether no other score is close."""
    gaps = np.append(np.abs(np.diff(scores)) > 2e-5, True)
    return gaps & np.roll(gaps, 1)


def triplets(item):
    people, objects, verbs = item.hois.T
    return verbs, item.labels[objects], item.boxes[people], item.boxes[objects]


def assert_file_same(file, expected, vocabulary):
    found = read_predictions(file, vocabulary)
    assert [one.image_id for one in found] == list(expected)
    for one in found:
        assert_same(one, expected[one.image_id])


@pytest.mark.parametrize(("batch_size", "threads"), [(1, 0), (2, 2), (16, 2)])
def test_batches_and_threads(detector, mixed, expected, batch_size, threads):
    predictions = list(detector.predictor.stream(image_paths(mixed), batch_size, threads))
    assert sorted(one.index for one in predictions) == list(range(len(SIZES)))
    for one in predictions:
        assert_same(one.detections, expected[f"picture {one.index}.png"])


def test_final_evaluation_of_a_run(run, expected, vocabulary):
    assert_file_same(run / "predictions.json", expected, vocabulary)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_of_a_checkpoint(run, mixed, expected, vocabulary, tmp_path, workers):
    results = evaluate_checkpoint(run, mixed, None, tmp_path, "cpu", workers, overwrite=True)
    assert_file_same(tmp_path / "predictions.json", expected, vocabulary)
    assert results.metrics == pytest.approx(read_json(run / "results.json")["metrics"])


def test_validation(configured, run, detector):
    """Repeats the validation of the run."""
    logged = json.loads((run / "validation.jsonl").read_text())["metrics"]
    validator = build_inputs(configured, SINGLE_PROCESS).validator
    execution = Execution(CPU, workers=1)
    scores = validator.evaluate(detector.predictor, execution, run.with_name("again"))
    assert len(validator.records) == 4 and scores == pytest.approx(logged)


def test_two_processes(run, mixed, expected, vocabulary, start_processes, tmp_path):
    arguments = ("--data", mixed, "--out", tmp_path, "--device", "cpu", "--workers", 1)
    for ended in [
        command() for command in start_processes(["evaluate", run, *arguments, "--overwrite"])
    ]:
        assert ended[0] == 0, ended
    assert_file_same(tmp_path / "predictions.json", expected, vocabulary)


@pytest.mark.parametrize(("batch_size", "nms"), [(1, None), (16, NmsConfig(threshold=0.3))])
def test_images_parts_and_python(detector, mixed, expected, tmp_path, batch_size, nms):
    """The same interactions from each; all of them without pairwise NMS."""
    results, vocabulary = dict(expected), detector.vocabulary
    if nms is not None:
        results = {name: pairwise_nms(found, nms) for name, found in results.items()}
        assert count(results) < count(expected)
    paths, file = image_paths(mixed), tmp_path / "images.json"
    selection = SelectionConfig(0.0, 100, nms, no_interaction=True)
    config = ShardConfig(selection, batch_size=batch_size, workers=1)
    predictions = predict_dataset(detector, open_dataset(mixed), "test", tmp_path, config)
    assert_file_same(predictions, results, vocabulary)
    predict_images(detector, tuple(map(str, paths)), None, file, selection, batch_size, workers=1)
    settings = {"threshold": 0.0, "top": 100, "nms": nms, "no_interaction": True}
    found = detector(paths, batch_size=batch_size, **settings)
    for one, entry, other in zip(found, read_json(file)["pictures"], results.values(), strict=True):
        hois = np.column_stack([one.pairs, one.verbs])
        assert_same(Detections(one.image, one.boxes, one.labels, hois, one.scores), other)
        scores = [row["score"] for row in entry["interactions"]]
        np.testing.assert_allclose(scores, other.scores, rtol=0, atol=1e-5)


def count(items):
    return sum(len(one.scores) for one in items.values())


def test_all_commands_use_the_precision_of_the_training(run, mixed, monkeypatch, tmp_path):
    """The precision in the checkpoint decides whether a GPU uses TF32."""
    precisions = []
    monkeypatch.setattr(
        "student.inference.batch_predictor.configure_device",
        lambda _, name: precisions.append(name),
    )
    trained = load_checkpoint(run / "checkpoint.pt").recipe.train.precision
    evaluate_checkpoint(run, mixed, None, tmp_path / "a", "cpu", 0, overwrite=True)
    Detector.open(run, device="cpu")(image_paths(mixed)[0])
    assert set(precisions) == {trained} and len(precisions) > 3


@pytest.mark.gpu
def test_on_a_gpu(run, mixed, expected):
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    predictor, paths = Detector.open(run, device="cuda:0").predictor, image_paths(mixed)
    alone = {one.index: one.detections for one in predictor.stream(paths, batch_size=1)}
    for one in predictor.stream(paths, batch_size=16, threads=2):
        assert_same(one.detections, alone[one.index])
        np.testing.assert_allclose(
            one.detections.scores, expected[f"picture {one.index}.png"].scores, rtol=0, atol=1e-4
        )
