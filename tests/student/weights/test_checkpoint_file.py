import numpy as np
import pytest
import torch

from pipeline.splits import load_split
from pipeline.utils.errors import InputError
from student.config import get_preset
from student.models.detector import HOIDetector
from student.weights.checkpoint_file import (
    FORMAT,
    Checkpoint,
    build_model,
    load_checkpoint,
    save_checkpoint,
)
from student.weights.load import load_model


@pytest.fixture
def checkpoint(vocabulary):
    torch.manual_seed(3)
    recipe = get_preset("toy", vocabulary.num_objects, vocabulary.num_verbs, vocabulary.person)
    weights = HOIDetector(recipe.model).state_dict()
    return Checkpoint(recipe, vocabulary, load_split(vocabulary, "ua"), weights, {"step": 7})


@pytest.fixture
def run(checkpoint, tmp_path):
    """A run folder."""
    save_checkpoint(tmp_path / "run" / "checkpoint.pt", checkpoint)
    return tmp_path / "run"


def test_a_checkpoint_is_read_back(run, checkpoint):
    found = load_checkpoint(run / "checkpoint.pt")
    assert found.recipe == checkpoint.recipe and found.state == {"step": 7}
    assert found.vocabulary.digest() == checkpoint.vocabulary.digest()
    assert (found.split.name, found.split.unseen) == ("ua", checkpoint.split.unseen)
    np.testing.assert_array_equal(found.split.distilled_verbs, checkpoint.split.distilled_verbs)
    assert found.weights.keys() == checkpoint.weights.keys()
    assert all(torch.equal(value, checkpoint.weights[n]) for n, value in found.weights.items())


def test_a_run_folder_and_its_checkpoint_open_the_same_detector(run, checkpoint):
    image = [torch.randn(3, 128, 128)]
    expected = build_model(checkpoint, run)(image)
    for path in (run, str(run), run / "checkpoint.pt"):
        model = load_model(path)
        assert isinstance(model, HOIDetector) and not model.training
        outputs = model(image)
        for name in expected:
            if name.startswith("pred_"):
                assert torch.equal(outputs[name], expected[name]), name


def test_an_interrupted_write_keeps_the_old_file(run, checkpoint, monkeypatch):
    before = (run / "checkpoint.pt").read_bytes()

    def half(value, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(run / "checkpoint.pt", checkpoint)
    assert (run / "checkpoint.pt").read_bytes() == before
    assert [path.name for path in run.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.99])
def test_a_truncated_checkpoint_gives_a_one_line_error(run, share):
    file = run / "checkpoint.pt"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"found (a|an|data) ") as caught:
        load_model(file)
    assert str(caught.value).startswith(f"{file}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [("gone", "gone: no such"), (".", r"folder without checkpoint.pt")],
)
def test_a_missing_file(tmp_path, path, message):
    with pytest.raises(InputError, match=message):
        load_model(tmp_path / path)


def in_weights(**entries):
    return lambda value: value["model"].update(entries)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda value: value.update(format="eoid-student-1"), f"format: expected {FORMAT}, found"),
        (lambda value: value.pop("recipe"), r"recipe: expected.*found None"),
        (lambda value: value.pop("model"), "model: expected"),
        (lambda value: value.pop("state"), "state: expected"),
        (lambda value: value["recipe"].pop("losses"), "recipe: expected"),
        (lambda value: value["recipe"]["train"].update(speed=1), r"recipe.train: expected"),
        (lambda value: value["vocabulary"].pop("verbs"), "verbs"),
        (lambda value: value["split"].pop("unseen"), "split: expected"),
        (lambda value: value["model"].pop("verb_head.bias"), "model: expected"),
        (in_weights(surplus=torch.ones(1)), "model: expected"),
        (in_weights(**{"verb_head.bias": torch.ones(3)}), "model: expected"),
        # Code in the file is not run.
        (lambda value: value.update(recipe=print), "print"),
    ],
)
def test_wrong_content_names_file_and_field(run, damage, message):
    file = run / "checkpoint.pt"
    value = torch.load(file, weights_only=True)
    damage(value)
    torch.save(value, file)
    with pytest.raises(InputError, match=message) as caught:
        build_model(load_checkpoint(file), file)
    assert str(caught.value).startswith(f"{file}: ") and "\n" not in str(caught.value)


def test_other_file_forms_are_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InputError, match=f"format: expected {FORMAT}, found list"):
        load_checkpoint(tmp_path / "list.pt")
