import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evaluation.predictions import read_predictions
from evaluation.results import read_results
from pipeline.datasets.dataset import open_dataset
from pipeline.toy.backbone import SingleFeatureMap, ToyBackbone
from pipeline.toy.generate import write_toy
from pipeline.utils.errors import InputError
from pipeline.utils.files import read_json, write_json
from pipeline.vocabulary import load_vocabulary
from student.data.dataset import TrainingDataset
from student.engine.evaluate import evaluate_checkpoint
from student.engine.run import RunConfig, run_student
from student.engine.run_inputs import RunRequest
from student.engine.validation import ValidationScore, Validator
from student.models.detector import HOIDetector
from student.weights.checkpoint_file import load_checkpoint
from student.weights.load import load_model

OPTIONS = {"epochs": 1, "batch_size": 8, "precision": "float32"}


@pytest.fixture(scope="module")
def configured(dataset_root, cache_path):
    """`configured(out, field=value)` returns the settings of a short run."""

    def make(out, **changes):
        run_request = RunRequest(dataset_root, cache_path, "ua", "toy", OPTIONS)
        requested = {name: changes.pop(name) for name in changes.keys() & vars(run_request).keys()}
        return RunConfig(
            replace(run_request, **requested), out, **{"device": "cpu", "workers": 0, **changes}
        )

    return make


@pytest.fixture(scope="module")
def finished(configured, tmp_path_factory):
    """A run folder and the results of the run."""
    out = tmp_path_factory.mktemp("runs") / "distilled"
    return out, run_student(configured(out))


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(finished[0], tmp_path / "distilled"))


def content(folder):
    """The bytes of every file except drawings and the lock."""
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.is_file() and path.name != ".lock"
    }


def test_files_of_a_run_folder(finished, dataset, vocabulary):
    out, returned = finished
    assert set(content(out)) == {
        "checkpoint.pt",
        "config.json",
        "metrics.jsonl",
        "predictions.json",
        "results.json",
    }
    results = read_results(out / "results.json")
    assert results.metrics == returned.metrics
    assert (results.name, results.kind, results.split) == ("distilled", "student", "ua")
    assert (results.training_split, results.protocol, results.seed) == ("ua", "detector", 0)
    assert results.distillation is True and results.num_images == 6
    assert results.predictions.samefile(out / "predictions.json")
    assert results.metrics_log.samefile(out / "metrics.jsonl")
    assert results.dataset_path.samefile(dataset.root)
    found = read_predictions(out / "predictions.json", vocabulary)
    assert [one.image_id for one in found] == [
        annotation.image_id for annotation in dataset.load("test").annotations
    ]
    plan = read_json(out / "config.json")
    assert plan["recipe"] == load_checkpoint(out / "checkpoint.pt").recipe.to_dict()
    assert plan["recipe"]["train"]["epochs"] == 1 and plan["pretrained"] is None
    recorded = plan["execution"]
    assert recorded["cache"] and (
        recorded["workers"],
        recorded["processes"],
        recorded["device"],
    ) == (0, 1, "cpu")


def test_the_run_opens_as_a_detector(finished):
    model = load_model(finished[0])
    with torch.no_grad():
        assert model([torch.zeros(3, 128, 128)])["pred_verb_logits"].shape[0] == 1


def test_a_finished_run_repeated_gives_the_same_results(run, configured, finished, messages):
    before = content(run)
    (run / "results.json").unlink()
    results = run_student(configured(run))
    assert results.metrics == finished[1].metrics
    assert "resuming at step 2 of 2" in "\n".join(messages)
    after = content(run)
    assert after.keys() == before.keys()
    for name in ("checkpoint.pt", "metrics.jsonl", "predictions.json", "config.json"):
        assert after[name] == before[name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": {**OPTIONS, "seed": 1}}, "another recipe"),
        ({"options": {**OPTIONS, "distillation": False}}, "another recipe"),
        ({"split": "uc"}, "another split"),
        ({"split": "uc", "options": {}}, "another split and recipe"),
    ],
)
def test_another_run_in_the_folder_is_refused(run, configured, changes, message):
    before = content(run)
    with pytest.raises(InputError, match=rf"found {message} \(.*now .*\); choose a"):
        run_student(configured(run, **changes))
    assert content(run) == before


def test_overwrite_starts_a_new_run(run, configured):
    before = content(run)
    run_student(configured(run, options={**OPTIONS, "seed": 1}, overwrite=True))
    after = content(run)
    assert after.keys() == before.keys()
    assert all(after[name] != before[name] for name in after)
    assert [json.loads(line)["step"] for line in after["metrics.jsonl"].splitlines()] == [2]


def test_other_folders_are_refused(configured, tmp_path):
    (tmp_path / "thesis.tex").write_text("hours of work")
    with pytest.raises(
        InputError, match="expected a new folder or a run folder, found other files"
    ):
        run_student(configured(tmp_path))
    assert set(content(tmp_path)) == {"thesis.tex"}


class Killed(BaseException):
    """Simulates SIGKILL."""


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_validation_may_keep_the_best_checkpoint(
    configured, dataset, dataset_root, tmp_path, monkeypatch, messages
):
    """The best of given scores is kept, also by a run that is killed during a validation."""
    trained, scores = set(), [0.75, 0.25, 0.5]
    original = TrainingDataset.__getitem__

    def remember(self, key):
        trained.add(self.records[key[1]].id)
        return original(self, key)

    def evaluate(self, model, run, step, execution):
        assert not {record.id for record in self.records} & trained and len(self.records) == 4
        if step == 6 and not any("resuming at step" in line for line in messages):
            raise Killed
        return ValidationScore(scores[step // 3 - 1], {"seen": scores[step // 3 - 1]})

    monkeypatch.setattr(TrainingDataset, "__getitem__", remember)
    monkeypatch.setattr(Validator, "evaluate", evaluate)
    watched = {"epochs": 3, "val_size": 4, "val_every": 1, "keep": "best"}
    config = configured(tmp_path / "run", options={**OPTIONS, "batch_size": 4, **watched})
    with pytest.raises(Killed):
        run_student(config)
    results = run_student(config)
    assert len(trained) == 12
    found = lines(tmp_path / "run/validation.jsonl")
    assert [(one["step"], one["epoch"], one["best"]) for one in found] == [
        (3, 1, True), (6, 2, False), (9, 3, False)
    ]  # fmt: skip
    assert [one["metrics"]["seen"] for one in found] == scores
    best, last = (load_checkpoint(tmp_path / f"run/{name}.pt") for name in ("best", "checkpoint"))
    assert best.state["step"] == 3 and last.state["best"] == {"score": 0.75, "step": 3}
    assert any(not torch.equal(value, last.weights[name]) for name, value in best.weights.items())
    # The run folder now opens its best checkpoint.
    again = evaluate_checkpoint(
        tmp_path / "run", dataset_root, None, tmp_path / "again", "cpu", 0, False
    )
    assert again.metrics == results.metrics


def test_held_out_images_are_scored(configured, tmp_path, messages):
    options = {**OPTIONS, "val_size": 0.25, "val_every": 1}
    run_student(configured(tmp_path / "run", options=options))
    (line,) = lines(tmp_path / "run/validation.jsonl")
    assert set(line["metrics"]) == {"seen", "mean_max_recall"} and line["step"] == 1
    assert "epoch 1, validation: seen" in "\n".join(messages)
    assert len(list((tmp_path / "run/pictures/step-0000001").iterdir())) > 0
    assert len(list((tmp_path / "run/pictures/test").iterdir())) == 4
    assert not (tmp_path / "run/best.pt").exists()


def test_a_longer_run_continues_another(configured, finished, tmp_path, messages):
    source = finished[0] / "checkpoint.pt"
    longer = {**OPTIONS, "schedule": "step", "epochs": 1}
    first = tmp_path / "first"
    run_student(configured(first, options=longer))
    config = configured(
        tmp_path / "second", options={**longer, "epochs": 2}, resume=str(first / "checkpoint.pt")
    )
    run_student(config)
    assert "resuming at step 2 of 4" in "\n".join(messages)
    assert [line["step"] for line in lines(tmp_path / "second/metrics.jsonl")] == [4]
    with pytest.raises(InputError, match="found one with another recipe"):
        run_student(replace(config, out=tmp_path / "third", resume=str(source)))


@pytest.fixture
def init_file(tmp_path):
    """Pretrained weights of a backbone."""
    body = SingleFeatureMap(ToyBackbone()).state_dict()
    save_file({f"backbone.{name}": x for name, x in body.items()}, tmp_path / "body.safetensors")
    return tmp_path / "body.safetensors"


def test_a_resumed_run_does_not_need_the_pretrained_weights(
    configured, init_file, tmp_path, messages
):
    config = configured(tmp_path / "run", pretrained=init_file)
    results = run_student(config)
    recorded = (tmp_path / "run/pretrained.json").read_bytes()
    assert "pretrained weights: body.safetensors" in "\n".join(messages)
    messages.clear()
    moved = init_file.rename(tmp_path / "moved.safetensors")
    assert run_student(config).metrics == results.metrics
    out = "\n".join(messages)
    assert f"{init_file}: no such file, and not needed to resume" in out
    assert "resuming at step 2 of 2" in out and "pretrained weights:" not in out
    # The weights are identified by content, not by path.
    assert run_student(replace(config, pretrained=moved)).metrics == results.metrics
    save_file({**load_file(moved), "more": torch.ones(1)}, init_file)
    with pytest.raises(InputError, match=r"found another pretrained \(.*, now .*\); choose a"):
        run_student(config)
    assert (tmp_path / "run/pretrained.json").read_bytes() == recorded


def test_a_new_run_needs_the_pretrained_weights(configured, init_file, tmp_path):
    config = configured(tmp_path / "run", pretrained=init_file)
    run_student(config)
    init_file.unlink()
    before = content(config.out)
    for changes in ({"resume": "never"}, {"request": replace(config.request, split="uc")}):
        with pytest.raises(InputError, match=r"body\.safetensors: no such"):
            run_student(replace(config, overwrite=True, **changes))
    assert content(config.out) == before
    for name in ("checkpoint.pt", "checkpoint-previous.pt"):
        (config.out / name).unlink(missing_ok=True)
    with pytest.raises(InputError, match=r"body\.safetensors: no such file"):
        run_student(config)


def test_a_damaged_checkpoint_falls_back_to_the_previous_one(
    configured, finished, tmp_path, messages
):
    run = tmp_path / "run"
    config = configured(run, options={**OPTIONS, "epochs": 2})
    results = run_student(config)
    content = bytearray((run / "checkpoint.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (run / "checkpoint.pt").write_bytes(content)
    messages.clear()
    assert run_student(config).metrics == results.metrics
    out = "\n".join(messages)
    assert "checkpoint.pt: expected a whole checkpoint, found damage in" in out
    assert "resuming checkpoint-previous.pt" in out and "resuming at step 2 of 4" in out


def test_a_run_without_distillation_starts_from_the_same_weights(
    configured, finished, tmp_path, monkeypatch
):
    started = []
    build = HOIDetector.__init__

    def remember(self, config):
        build(self, config)
        started.append({name: value.clone() for name, value in self.state_dict().items()})

    monkeypatch.setattr(HOIDetector, "__init__", remember)
    for name, more in (("on", {}), ("off", {"distillation": False})):
        run_student(configured(tmp_path / name, options={**OPTIONS, **more}))
    first, second = started
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert read_results(tmp_path / "off" / "results.json").distillation is False
    ours, theirs = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][-1]
        for folder in (tmp_path / "on", tmp_path / "off")
    )
    assert ours["losses"]["verb_soft"] > 0 == theirs["losses"]["verb_soft"]


def same_dataset(root, folder):
    return Path(shutil.copytree(root, folder / "toy"))


def no_test_images(dataset, _):
    next((dataset / "images/test2015").iterdir()).unlink()


def bad_test_annotations(dataset, _):
    (dataset / "annotations/test_hico.json").write_text("{")


def other_annotations(dataset, _):
    file = dataset / "annotations/trainval_hico.json"
    file.write_text(file.read_text() + " ")


def no_train_images(dataset, _):
    shutil.rmtree(dataset / "images/train2015")


def unfinished_cache(_, cache):
    (cache / "manifest.json").rename(cache / "build.json")


def no_cache(_, cache):
    shutil.rmtree(cache)


def lost_shard(_, cache):
    (cache / "shards/00000.h5").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_test_images, "no such image"),
        (bad_test_annotations, "test_hico.json: line 1: expected JSON"),
        (other_annotations, "the cache does not fit this dataset: annotations: "),
        (no_train_images, "no such folder of images"),
        (unfinished_cache, "the cache is unfinished"),
        (no_cache, "expected a cache folder with manifest.json, found none"),
    ],
)
def test_bad_input_creates_no_run_folder(
    configured, dataset_root, cache_path, tmp_path, damage, message
):
    data = same_dataset(dataset_root, tmp_path)
    cache = Path(shutil.copytree(cache_path, tmp_path / "cache"))
    damage(data, cache)
    with pytest.raises(InputError, match=message) as caught:
        run_student(configured(tmp_path / "run", data=data, cache=cache))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "zz"}, "zz: no such split of toy; expected one of full, ua"),
        ({"preset": "tiny"}, "--preset: expected one of"),
        ({"device": "abacus"}, "--device: expected"),
        ({"pretrained": Path("gone.safetensors")}, "gone.safetensors: no such"),
        ({"data": Path("gone")}, "gone: no such dataset folder"),
    ],
)
def test_wrong_settings_create_no_run_folder(configured, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        run_student(configured(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_a_damaged_shard_gives_a_one_line_error(configured, cache_path, tmp_path):
    cache = Path(shutil.copytree(cache_path, tmp_path / "cache"))
    lost_shard(None, cache)
    with pytest.raises(InputError, match=r"00000.h5: expected a complete shard") as caught:
        run_student(configured(tmp_path / "run", cache=cache, workers=1))
    assert "\n" not in str(caught.value)


@pytest.fixture
def partial_cache(annotations, make_teacher_outputs, write_cache, vocabulary, tmp_path):
    """`partial_cache(count)` is a cache with the first images only, the others failed."""

    def make(count):
        outputs = {
            annotation.image_id: make_teacher_outputs(annotation)
            for annotation in annotations.annotations[:count]
        }
        return write_cache(tmp_path / "partial", vocabulary, annotations.digest, outputs)

    return make


def test_images_missing_in_the_cache_are_left_out_and_counted(
    configured, partial_cache, tmp_path, messages
):
    run_student(configured(tmp_path / "run", cache=partial_cache(9)))
    assert "no teacher outputs for 7 images, left out" in "\n".join(messages)
    assert load_checkpoint(tmp_path / "run/checkpoint.pt").state["step"] == 1


def test_more_labelled_pairs_than_queries_are_logged_once(configured, tmp_path, messages):
    options = {**OPTIONS, "num_queries": 1}
    run_student(configured(tmp_path / "run", options=options))
    lines = messages
    assert (
        sum("more labelled pairs than the student has queries (1)" in line for line in lines) == 1
    )


def test_a_cache_without_training_images_is_refused(configured, partial_cache, tmp_path):
    with pytest.raises(InputError, match="expected teacher outputs for images"):
        run_student(configured(tmp_path / "run", cache=partial_cache(0)))
    assert not (tmp_path / "run").exists()


def evaluate(path, data, split=None, out=None, overwrite=False, workers=0):
    return evaluate_checkpoint(path, data, split, out, "cpu", workers, overwrite)


def test_evaluating_a_run_reproduces_its_results(run, finished, dataset_root, tmp_path):
    for path in (run, run / "checkpoint.pt"):
        out = tmp_path / f"from {path.name}"
        results = evaluate(path, dataset_root, out=out)
        assert results.metrics == finished[1].metrics
        assert read_results(out / "results.json").name == "distilled"
        assert (out / "predictions.json").read_bytes() == (run / "predictions.json").read_bytes()


def test_evaluating_with_another_split(run, dataset_root, finished, tmp_path):
    results = evaluate(run, dataset_root, "uc", tmp_path / "uc")
    assert (results.split, results.training_split) == ("uc", "ua")
    assert results.metrics["full"] == finished[1].metrics["full"]
    assert results.unseen != finished[1].unseen


def test_results_are_replaced_only_with_overwrite(run, dataset_root):
    before = content(run)
    with pytest.raises(InputError, match=r"results.json: exists; give --overwrite"):
        evaluate(run, dataset_root, "uc")
    assert content(run) == before
    evaluate(run, dataset_root, "uc", overwrite=True)
    assert read_results(run / "results.json").split == "uc"


def test_another_vocabulary_is_refused(run, dataset_root, tmp_path):
    data = same_dataset(dataset_root, tmp_path)
    vocabulary = load_vocabulary("toy").to_dict()
    vocabulary["name"] = "other"
    vocabulary["verbs"][0]["name"] = "mount"
    write_json(data / "words.json", vocabulary)
    description = data / "dataset.toml"
    description.write_text(
        description.read_text().replace('vocabulary = "toy"', 'vocabulary = "words.json"')
    )
    assert open_dataset(data).vocabulary.name == "other"
    with pytest.raises(InputError, match="student of the vocabulary other, found toy"):
        evaluate(run, data, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run, data: (run / "checkpoint.pt").unlink(), "checkpoint.pt: no such file"),
        (
            lambda run, data: (run / "checkpoint.pt").write_bytes(b"PK"),
            "checkpoint.pt: expected a weights file",
        ),
        (
            lambda run, data: torch.save({"model": {}}, run / "checkpoint.pt"),
            "content: expected a checkpoint of this project or a published one",
        ),
        (lambda run, data: no_test_images(data, None), "no such image"),
    ],
)
def test_files_that_cannot_be_evaluated(run, dataset_root, tmp_path, damage, message):
    data = same_dataset(dataset_root, tmp_path)
    damage(run, data)
    with pytest.raises(InputError, match=message):
        evaluate(run, data, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_test_image_gives_a_one_line_error(run, dataset_root, tmp_path, workers):
    data = same_dataset(dataset_root, tmp_path)
    image = sorted((data / "images/test2015").iterdir())[3]
    image.write_bytes(image.read_bytes()[:900])
    with pytest.raises(InputError) as caught:
        evaluate(run, data, out=tmp_path / "out", workers=workers)
    assert str(caught.value).startswith(f"{image}: expected a whole image")
    assert "\n" not in str(caught.value) and not list((tmp_path / "out").glob("*"))


def test_a_dataset_without_a_test_part(run, tmp_path):
    write_toy(tmp_path / "toy", train=1, test=1, seed=0, workers=1)
    description = tmp_path / "toy/dataset.toml"
    description.write_text(description.read_text().partition("[test]")[0])
    with pytest.raises(InputError, match="expected a part named test, found train"):
        evaluate(run, tmp_path / "toy", out=tmp_path / "out")


def test_an_unreadable_test_image_is_reported_before_training(configured, dataset_root, tmp_path):
    data = same_dataset(dataset_root, tmp_path)
    image = sorted((data / "images/test2015").iterdir())[2]
    image.write_bytes(image.read_bytes()[:900])
    config = configured(tmp_path / "run", data=data)
    with pytest.raises(InputError) as caught:
        run_student(config)
    assert str(image) in str(caught.value) and "--skip-unreadable" in str(caught.value)
    assert not config.out.exists()
    results = run_student(configured(tmp_path / "run", data=data, skip_unreadable=True))
    assert results.num_images == 6
    found = {one["file_name"]: one for one in read_json(config.out / "predictions.json")}
    assert [name for name, one in found.items() if not one["hoi_prediction"]] == [image.name]
