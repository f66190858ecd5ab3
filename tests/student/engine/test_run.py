import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from training import assert_equal_weights, read_lines

from evaluation.predictions import read_predictions
from evaluation.results import read_results
from pipeline.toy.backbone import SingleFeatureMap, ToyBackbone
from pipeline.utils.errors import InputError
from pipeline.utils.files import read_json, write_json
from pipeline.vocabulary import load_vocabulary
from student.data.dataset import TrainingDataset
from student.engine.evaluate import Validator, evaluate_checkpoint, evaluate_model
from student.engine.run import run_student
from student.models.timm_backbone import create_timm_model
from student.weights.checkpoint_file import load_checkpoint


@pytest.fixture(scope="module")
def finished(configure_run, tmp_path_factory):
    """A run folder and the results of the run."""
    out = tmp_path_factory.mktemp("runs") / "distilled"
    return out, run_student(configure_run(out))


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(finished[0], tmp_path / "distilled"))


@pytest.fixture
def data(dataset_root, tmp_path):
    """A copy of the dataset that a test may change."""
    return Path(shutil.copytree(dataset_root, tmp_path / "toy"))


def content(folder):
    """The bytes of every file except drawings and the lock."""
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.is_file() and path.name != ".lock"
    }


def step_of(drawings):
    """The step of a validation, from its folder of drawings."""
    return int(drawings.name.removeprefix("step-"))


def test_files_of_a_run_folder(finished, dataset, vocabulary):
    out, returned = finished
    names = {"checkpoint.pt", "config.json", "metrics.jsonl", "predictions.json", "results.json"}
    assert content(out).keys() == names
    results = read_results(out / "results.json")
    assert results.metrics == returned.metrics
    assert (results.name, results.kind, results.split) == ("distilled", "student", "ua")
    assert (results.training_split, results.protocol, results.seed) == ("ua", "detector", 0)
    assert results.distillation is True and results.num_images == 6
    assert results.predictions.samefile(out / "predictions.json")
    assert results.metrics_log.samefile(out / "metrics.jsonl")
    assert results.dataset_path.samefile(dataset.root)
    found = read_predictions(out / "predictions.json", vocabulary)
    expected = dataset.load("test").annotations
    assert [one.image_id for one in found] == [one.image_id for one in expected]
    plan = read_json(out / "config.json")
    assert plan["recipe"] == load_checkpoint(out / "checkpoint.pt").recipe.to_dict()
    assert plan["pretrained"] is None
    assert plan["execution"].items() >= {"preset": "toy", "workers": 0, "device": "cpu"}.items()


def test_a_finished_run_repeated_gives_the_same_results(run, configure_run, finished, messages):
    before = content(run)
    (run / "results.json").unlink()
    results = run_student(configure_run(run))
    assert results.metrics == finished[1].metrics
    assert "resuming at step 2 of 2" in "\n".join(messages)
    after = content(run)
    # Results contain the paths of the run.
    assert after.pop("results.json") and before.pop("results.json")
    assert {**after, "config.json": b""} == {**before, "config.json": b""}


class Killed(BaseException):
    """Simulates SIGKILL."""


def test_validation_may_keep_the_best_checkpoint(configure_run, tmp_path, monkeypatch, messages):
    """The best of given scores is kept, also by a run that is killed during a validation."""
    trained, scores = set(), [0.75, 0.25, 0.5]
    original = TrainingDataset.__getitem__

    def remember(self, key):
        trained.add(self.records[key[1]].id)
        return original(self, key)

    def evaluate(self, predictor, execution, drawings):
        step = step_of(drawings)
        assert not {record.id for record in self.records} & trained and len(self.records) == 4
        if step == 6 and not any("resuming at step" in line for line in messages):
            raise Killed
        return {"seen": scores[step // 3 - 1]}

    monkeypatch.setattr(TrainingDataset, "__getitem__", remember)
    monkeypatch.setattr(Validator, "evaluate", evaluate)
    watched = {"epochs": 3, "val_size": 4, "val_every": 1, "keep": "best"}
    config = configure_run(tmp_path / "run", batch_size=4, **watched)
    with pytest.raises(Killed):
        run_student(config)
    results = run_student(config)
    assert len(trained) == 12
    found = read_lines(tmp_path / "run/validation.jsonl")
    keys = [(one["step"], one["epoch"], one["best"], one["metrics"]["seen"]) for one in found]
    assert keys == [(3, 1, True, 0.75), (6, 2, False, 0.25), (9, 3, False, 0.5)]
    best, last = (load_checkpoint(tmp_path / f"run/{name}.pt") for name in ("best", "checkpoint"))
    assert best.state["step"] == 3 and last.state["best"] == {"score": 0.75, "step": 3}
    assert any(not torch.equal(value, last.weights[name]) for name, value in best.weights.items())
    # The run folder now opens its best checkpoint.
    assert evaluate_run(tmp_path / "run", config.data, tmp_path / "again") == results.metrics


EARLY = {"epochs": 9, "val_size": 4, "val_every": 1, "keep": "best", "patience": 2}


def test_a_run_stops_early(configure_run, tmp_path, monkeypatch, messages):
    """Two validations after the best one, without a better score; also if it is killed then."""
    scores, killed = [0.25, 0.5, 0.5, 0.25, 0.75], []

    def evaluate(self, predictor, execution, drawings):
        return {"seen": scores[step_of(drawings) // 3 - 1]}

    def draw(*given, **options):
        if not killed:
            killed.append(True)
            raise Killed
        return evaluate_model(*given, **options)

    monkeypatch.setattr(Validator, "evaluate", evaluate)
    monkeypatch.setattr("student.engine.run.evaluate_model", draw)
    config = configure_run(tmp_path / "run", batch_size=4, schedule="step", **EARLY)
    with pytest.raises(Killed):
        run_student(config)
    assert not (tmp_path / "run/results.json").exists()
    (line,) = (line for line in messages if "training ended after epoch 4 of 9" in line)
    for fact in ("2 validations without", "than epoch 2 (seen 50.00)", "--patience"):
        assert fact in line
    messages.clear()
    results = run_student(config)
    assert "resuming at step 12 of 27" in "\n".join(messages)
    steps = [(one["step"], one["best"]) for one in read_lines(tmp_path / "run/validation.jsonl")]
    assert steps == [(3, True), (6, True), (9, False), (12, False)]
    last = load_checkpoint(tmp_path / "run/checkpoint.pt")
    assert last.state["step"] == 12 and last.recipe.train.patience == 2
    assert load_checkpoint(tmp_path / "run/best.pt").state["step"] == 6
    messages.clear()
    assert run_student(config).metrics == results.metrics
    assert any("this run is finished" in line for line in messages)
    # More patience continues it in another folder, and ends at the next best score.
    more = {"batch_size": 4, "schedule": "step", **EARLY, "epochs": 5, "patience": 3}
    source = str(tmp_path / "run")
    run_student(configure_run(tmp_path / "longer", **more, resume=source))
    last = load_checkpoint(tmp_path / "longer/checkpoint.pt")
    assert last.state["step"] == 15 and last.state["best"] == {"score": 0.75, "step": 15}
    assert not any("training ended" in line for line in messages)
    # Without a better score, the run ends with the best weights of the run that it continues.
    scores[-1] = 0.0
    run_student(configure_run(tmp_path / "worse", **more, resume=source))
    assert load_checkpoint(tmp_path / "worse/best.pt").state["step"] == 6


def test_only_heads_need_whole_pretrained_weights(run, configure_run, tmp_path, messages):
    config = configure_run(tmp_path / "heads", heads_only=True, epochs=2)
    with pytest.raises(InputError, match=r"^--heads-only: expected --pretrained .*, found none$"):
        run_student(config)
    body = SingleFeatureMap(ToyBackbone()).state_dict()
    file = tmp_path / "body.safetensors"
    save_file({f"backbone.{name}": value for name, value in body.items()}, file)
    message = r"--heads-only: .*, found a toy detector without .*encoder \d+.*body\.safetensors"
    with pytest.raises(InputError, match=message):
        run_student(replace(config, pretrained=file))
    assert not config.out.exists()
    run_student(replace(config, pretrained=run))
    old, new = (load_checkpoint(path / "checkpoint.pt").weights for path in (run, config.out))
    changed = {name.split(".")[0] for name in new if not torch.equal(new[name], old[name])}
    heads = {"human_box_head", "object_box_head", "object_head", "verb_head", "interactive_head"}
    assert changed == {*heads, "query_source"}
    # A finished or interrupted run needs the file no more.
    run_student(replace(config, pretrained=run))
    assert any("this run is finished" in line for line in messages)
    with pytest.raises(InputError, match=r"found others .*--heads-only: True, now False"):
        run_student(configure_run(config.out, epochs=2, pretrained=run))


def evaluate_run(path, data, out):
    return evaluate_checkpoint(path, data, None, out, "cpu", 0, False).metrics


def test_held_out_images_are_scored(configure_run, tmp_path, messages):
    run_student(configure_run(tmp_path / "run", val_size=0.25, val_every=1))
    (line,) = read_lines(tmp_path / "run/validation.jsonl")
    assert set(line["metrics"]) == {"seen", "mean_max_recall"} and line["step"] == 1
    assert "epoch 1, validation: seen" in "\n".join(messages)
    assert len(list((tmp_path / "run/pictures/step-0000001").iterdir())) > 0
    assert len(list((tmp_path / "run/pictures/test").iterdir())) == 4
    assert not (tmp_path / "run/best.pt").exists()


def test_a_longer_run_continues_another(configure_run, tmp_path, messages):
    run_student(configure_run(tmp_path / "first", schedule="step"))
    source = str(tmp_path / "first/checkpoint.pt")
    run_student(configure_run(tmp_path / "second", schedule="step", epochs=2, resume=source))
    assert "resuming at step 2 of 4" in "\n".join(messages)
    assert [line["step"] for line in read_lines(tmp_path / "second/metrics.jsonl")] == [4]
    assert sum("norm statistics" in line for line in messages) == 1
    # Preset toy freezes the backbone.
    assert sum("random weights are not trained" in line for line in messages) == 1


def test_a_backbone_with_random_weights_gets_measured_norm_statistics(run):
    weights = load_checkpoint(run / "checkpoint.pt").weights
    means = [value for name, value in weights.items() if name.endswith("running_mean")]
    assert means and all(mean.abs().max() > 0 for mean in means)


def test_pretrained_weights_are_needed_by_new_runs_only(configure_run, tmp_path, messages):
    """They are identified by content, not by path."""
    file, moved = tmp_path / "body.safetensors", tmp_path / "moved.safetensors"
    body = SingleFeatureMap(ToyBackbone()).state_dict()
    save_file({f"backbone.{name}": value for name, value in body.items()}, file)
    config = configure_run(tmp_path / "run", pretrained=file)
    results = run_student(config)
    assert "pretrained weights: body.safetensors" in "\n".join(messages)
    assert not any("norm statistics" in line for line in messages)
    messages.clear()
    file.rename(moved)
    for again in (config, replace(config, pretrained=moved)):
        assert run_student(again).metrics == results.metrics
    out = "\n".join(messages)
    assert f"{file}: no such file, and not needed to resume" in out
    assert f"{config.out}: this run is finished" in out and "pretrained weights:" not in out
    before = content(config.out)
    for changes in ({"resume": "never"}, {"split": "uc"}):
        with pytest.raises(InputError, match=r"body\.safetensors: no such"):
            run_student(replace(config, overwrite=True, **changes))
    save_file({**load_file(moved), "more": torch.ones(1)}, file)
    with pytest.raises(InputError, match=r"found others \(--pretrained: .*, now .*\); choose a"):
        run_student(config)
    assert content(config.out) == before
    file.unlink()
    (config.out / "checkpoint.pt").unlink()
    with pytest.raises(InputError, match=r"body\.safetensors: no such file"):
        run_student(config)


def test_missing_teacher_outputs(configure_run, annotations, make_cache, tmp_path, messages):
    def train(count):
        """With a cache of the first images only, and one query."""
        first = replace(annotations, annotations=annotations.annotations[:count])
        cache = make_cache(tmp_path / f"{count}", first)
        return run_student(configure_run(tmp_path / "run", cache=cache, num_queries=1))

    with pytest.raises(InputError, match="expected teacher outputs for images"):
        train(0)
    assert not (tmp_path / "run").exists()
    train(9)
    for text in ("no teacher outputs for 7 images, left out", "the student has queries (1)"):
        assert sum(text in line for line in messages) == 1
    assert load_checkpoint(tmp_path / "run/checkpoint.pt").state["step"] == 1


def test_evaluating_a_run_reproduces_its_results(run, finished, dataset_root, tmp_path):
    for path in (run, run / "checkpoint.pt"):
        out = tmp_path / f"from {path.name}"
        assert evaluate_run(path, dataset_root, out) == finished[1].metrics
        assert read_results(out / "results.json").name == "distilled"
        assert (out / "predictions.json").read_bytes() == (run / "predictions.json").read_bytes()


def test_evaluating_with_another_split_replaces_results_with_overwrite(run, dataset_root, finished):
    def evaluate(overwrite):
        return evaluate_checkpoint(run, dataset_root, "uc", None, "cpu", 0, overwrite)

    before = content(run)
    with pytest.raises(InputError, match=r"results.json: exists; give --overwrite"):
        evaluate(False)
    assert content(run) == before
    results = evaluate(True)
    assert read_results(run / "results.json").split == results.split == "uc"
    assert results.training_split == "ua" and results.unseen != finished[1].unseen
    assert results.metrics["full"] == finished[1].metrics["full"]


def other_vocabulary(data):
    vocabulary = load_vocabulary("toy").to_dict()
    vocabulary["name"] = "other"
    vocabulary["verbs"][0]["name"] = "mount"
    write_json(data / "words.json", vocabulary)
    text = (data / "dataset.toml").read_text()
    return text.replace('vocabulary = "toy"', 'vocabulary = "words.json"')


def no_test_part(data):
    return (data / "dataset.toml").read_text().partition("[test]")[0]


@pytest.mark.parametrize(
    ("describe", "message"),
    [
        (other_vocabulary, "student of the vocabulary other, found toy"),
        (no_test_part, "expected a part named test, found train"),
    ],
)
def test_datasets_that_cannot_be_evaluated(run, data, tmp_path, describe, message):
    (data / "dataset.toml").write_text(describe(data))
    with pytest.raises(InputError, match=message):
        evaluate_run(run, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unreadable_test_image_is_reported_before_training(configure_run, data, tmp_path):
    image = sorted((data / "images/test2015").iterdir())[2]
    image.write_bytes(image.read_bytes()[:900])
    config = configure_run(tmp_path / "run", data=data)
    with pytest.raises(InputError) as caught:
        run_student(config)
    assert str(image) in str(caught.value) and "--skip-unreadable" in str(caught.value)
    assert not config.out.exists()
    assert run_student(replace(config, skip_unreadable=True)).num_images == 6


@pytest.fixture
def limited_cache(annotations, make_teacher_outputs, write_cache, vocabulary, tmp_path):
    """A cache of every second training image."""
    file = annotations.limited(8)
    outputs = {one.image_id: make_teacher_outputs(one) for one in file.annotations}
    return write_cache(tmp_path / "limited", vocabulary, file.digest, outputs)


def test_a_limited_run(configure_run, limited_cache, data, tmp_path, messages):
    """Files of the other images need not exist."""
    chosen = {"train2015": (1, 5, 9, 13), "test2015": (1, 2, 4, 5)}
    for folder, numbers in chosen.items():
        for path in (data / "images" / folder).iterdir():
            if int(path.stem[-8:]) not in numbers:
                path.unlink()
    out = tmp_path / "run"
    best = {"val_size": 1, "val_every": 1, "keep": "best"}
    config = configure_run(out, data=data, cache=limited_cache, limit=4, **best)
    results = run_student(config)
    assert (results.limit, results.training_limit, results.num_images) == (4, 4, 4)
    stored = read_results(out / "results.json")
    assert stored.limit_note == "trained with --limit 4 and evaluated with --limit 4"
    plan = read_json(out / "config.json")
    assert plan["limit"] == 4 and "limit" not in plan["execution"]
    assert load_checkpoint(out / "checkpoint.pt").state["step"] == 1
    found = read_predictions(out / "predictions.json", load_vocabulary("toy"))
    assert [int(one.image_id[-12:-4]) for one in found] == list(chosen["test2015"])
    assert any("4 training and 4 test images" in line for line in messages)
    with pytest.raises(InputError, match=r"found others \(--limit: 4, now 2\)"):
        run_student(replace(config, limit=2))
    for file in ("best.pt", "checkpoint.pt"):
        path = tmp_path / file
        again = evaluate_checkpoint(out / file, data, None, path, "cpu", 0, False, limit=2)
        assert (again.limit, again.training_limit, again.num_images) == (2, 4, 2)


@pytest.mark.parametrize("limit", [None, 9])
def test_a_limited_cache_is_refused_for_more_images(configure_run, limited_cache, tmp_path, limit):
    with pytest.raises(InputError, match=r"limited: expected .* built with --limit 8; train on it"):
        run_student(configure_run(tmp_path / "run", cache=limited_cache, limit=limit))
    assert not (tmp_path / "run").exists()


def test_a_limit_above_the_number_of_images_is_none(run, configure_run, finished):
    """The run in the folder, which had no limit, counts as the same one."""
    results = run_student(configure_run(run, limit=16))
    assert results.metrics == finished[1].metrics and not results.limit_note
    with pytest.raises(InputError, match=r"found others \(--limit: nothing, now 15\)"):
        run_student(configure_run(run, limit=15))


def test_test_images_are_scored_during_the_training(configure_run, tmp_path):
    """A run with a curve of test scores has the same weights as one without."""
    for name, options in (("curve", {"test_every": 1}), ("plain", {})):
        run_student(configure_run(tmp_path / name, epochs=3, dropout=0.2, **options))
    lines = read_lines(tmp_path / "curve/test.jsonl")
    assert [line["epoch"] for line in lines] == [1, 2]
    assert all(set(line["metrics"]) == {"full", "seen", "unseen"} for line in lines)
    assert not (tmp_path / "plain/test.jsonl").exists()
    assert_equal_weights(tmp_path / "curve", tmp_path / "plain")


def test_an_interrupted_evaluation_of_the_test_images_is_repeated(
    configure_run, tmp_path, monkeypatch
):
    """Every epoch has one line, also if the run is stopped during its evaluation."""
    tried = []

    def evaluate(self, predictor, execution, drawings):
        tried.append(True)
        if len(tried) in (2, 3):
            raise Killed
        return {"full": 0.25}

    monkeypatch.setattr("student.engine.evaluate.Tester.evaluate", evaluate)
    config = configure_run(tmp_path / "run", epochs=3, schedule="step", test_every=1)
    for _ in range(2):
        with pytest.raises(Killed):
            run_student(config)
    run_student(config)
    assert [line["epoch"] for line in read_lines(tmp_path / "run/test.jsonl")] == [1, 2]
    assert len(tried) == 4
    # A run that continues another one starts its curve with the checkpoint's scores.
    longer = configure_run(
        tmp_path / "longer", epochs=4, schedule="step", test_every=1, resume=str(tmp_path / "run")
    )
    run_student(longer)
    assert [line["epoch"] for line in read_lines(tmp_path / "longer/test.jsonl")] == [3]


def test_the_last_scores_of_a_curve_are_those_of_an_evaluation(configure_run, tmp_path):
    config = configure_run(tmp_path / "run", epochs=2, schedule="step", test_every=1)
    run_student(configure_run(tmp_path / "short", epochs=1, schedule="step"))
    run_student(config)
    (line,) = read_lines(tmp_path / "run/test.jsonl")
    metrics = evaluate_run(tmp_path / "short", config.data, tmp_path / "again")
    for name, value in line["metrics"].items():
        assert metrics[name] == pytest.approx(value, abs=1e-6)


def test_a_run_of_an_earlier_version_is_resumed(run, configure_run, messages):
    """Settings that it does not know have their defaults."""
    plan = read_json(run / "config.json")
    assert plan["recipe"]["model"].pop("feature_levels") == 1
    assert plan.pop("backbone_weights") is None
    write_json(run / "config.json", plan)
    run_student(configure_run(run))
    assert any("this run is finished" in line for line in messages)
    with pytest.raises(InputError, match=r"found others \(--feature-levels: 1, now 2\)"):
        run_student(configure_run(run, feature_levels=2))


def test_backbone_weights_are_needed_by_new_runs_only(configure_run, tmp_path, messages):
    torch.manual_seed(3)
    file = tmp_path / "vit.safetensors"
    state = create_timm_model("timm:test_vit").state_dict()
    save_file(state, file)
    options = {"backbone": "timm:test_vit", "backbone_weights": str(file)}
    config = configure_run(tmp_path / "run", **options)
    run_student(config)
    out = "\n".join(messages)
    assert "pretrained weights: vit.safetensors, weights of timm:test_vit" in out
    assert "random weights" not in out
    # Preset toy freezes the backbone.
    weights = load_checkpoint(config.out / "checkpoint.pt").weights
    for name, value in weights.items():
        if name.startswith("backbone.body."):
            assert torch.equal(value, state[name.removeprefix("backbone.body.")])
    report = read_json(config.out / "pretrained.json")
    assert report["backbone"]["file"] == str(file) and report["backbone"]["used"]
    file.unlink()
    run_student(config)
    assert "this run is finished" in "\n".join(messages)
    with pytest.raises(InputError, match=r"vit\.safetensors: no such file"):
        run_student(configure_run(tmp_path / "other", **options))
