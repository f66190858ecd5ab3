import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.toy.scene import draw_scene
from pipeline.utils.errors import InputError
from pipeline.utils.files import read_json
from student.config import ModelConfig
from student.models.detector import HOIDetector
from student.weights.pretrained import load_pretrained
from teacher_cache.detectors.torchvision import Detector, DetectorConfig, recognise_architecture
from teacher_cache.teachers.clip import ClipConfig, ClipTeacher
from teacher_cache.teachers.prompts import interaction_prompts
from teacher_cache.toy.models import DetectorTrainingConfig, TeacherTrainingConfig, ToyModelsConfig
from teacher_cache.toy.train import train_toy_models

SHORT = ToyModelsConfig(
    pictures=32,
    teacher=TeacherTrainingConfig(steps=4, batch_size=16),
    detector=DetectorTrainingConfig(epochs=1),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "models"
    train_toy_models(folder, SHORT, "cpu")
    return folder


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_files_are_all_there(trained):
    assert set(content(trained)) == {
        "detector.safetensors",
        "teacher/open_clip_config.json",
        "teacher/open_clip_model.safetensors",
        "teacher/words.json",
        "toy_models.json",
    }
    plan = read_json(trained / "toy_models.json")
    assert plan["pictures"] == 32 and plan["teacher"]["steps"] == 4 and plan["seed"] == 0


def test_the_teacher_answers_in_phase_one(trained, vocabulary):
    teacher = ClipTeacher(ClipConfig(str(trained / "teacher")), torch.device("cpu"))
    prompts = [prompt for group in interaction_prompts(vocabulary) for prompt in group]
    texts = teacher.encode_texts(prompts)
    images = teacher.encode_images(torch.zeros((2, 3, 64, 64), dtype=torch.uint8))
    assert texts.shape == (vocabulary.num_interactions, 128) and images.shape == (2, 128)
    assert len(np.unique(texts.round(5), axis=0)) == len(set(prompts))


def test_the_detector_looks_in_phase_one(trained, vocabulary):
    weights = trained / "detector.safetensors"
    assert recognise_architecture(weights, vocabulary) == "toy"
    detector = Detector(DetectorConfig("toy", str(weights), 0.0), vocabulary, torch.device("cpu"))
    picture = np.asarray(draw_scene(0, "test", 0)[0])
    (found,) = detector([picture])
    assert found.boxes.shape == (len(found.scores), 4)


def test_a_student_starts_from_the_detectors_body(trained, vocabulary):
    model = HOIDetector(
        ModelConfig.toy(vocabulary.num_objects, vocabulary.num_verbs, vocabulary.person)
    )
    started = load_pretrained(model, trained / "detector.safetensors", vocabulary)
    assert started.kind == "a detector on toy"
    taken = {name for names in started.used.values() for name in names}
    assert taken == {f"backbone.{name}" for name in model.backbone.state_dict()}


def test_a_second_call_trains_nothing(trained, capsys):
    before = content(trained)
    train_toy_models(trained, SHORT, "cpu")
    assert content(trained) == before
    assert "are there already" in capsys.readouterr().out


@pytest.mark.slow
def test_what_an_interrupt_left_out_is_made_up_for(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "models")
    weights, detector = "teacher/open_clip_model.safetensors", folder / "detector.safetensors"
    (folder / weights).unlink()
    before = detector.stat().st_mtime_ns
    train_toy_models(folder, SHORT, "cpu")
    assert (folder / weights).is_file() and detector.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 1}, "another seed"),
        ({"pictures": 48}, "another pictures"),
        ({"seed": 1, "detector": DetectorTrainingConfig(epochs=2)}, "another seed and detector"),
    ],
)
def test_models_of_other_settings_are_refused(trained, change, says):
    before = content(trained)
    with pytest.raises(InputError, match=f"holds models with {says}"):
        train_toy_models(trained, ToyModelsConfig(**{**vars(SHORT), **change}), "cpu")
    assert content(trained) == before


def test_other_folders_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("hours of work")
    with pytest.raises(InputError, match="found other files"):
        train_toy_models(tmp_path, SHORT, "cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_no_such_device(tmp_path):
    with pytest.raises(InputError, match="--device"):
        train_toy_models(tmp_path / "models", SHORT, "abacus")
    assert not (tmp_path / "models").exists()


@pytest.mark.slow
def test_a_teacher_of_several_sentences_alone(trained, tmp_path, vocabulary, capsys):
    templates = ("a picture of person {ing} {object}", "photo {ing} the {object}")
    config = replace(SHORT, templates=templates, models=("teacher",))
    train_toy_models(tmp_path / "models", config, "cpu")
    assert not (tmp_path / "models/detector.safetensors").exists()
    words = read_json(tmp_path / "models/teacher/words.json")["words"]
    assert {"photo", "the", "person"} <= set(words)
    plan = read_json(tmp_path / "models/toy_models.json")
    assert plan["templates"] == list(templates)
    assert "templates" not in read_json(trained / "toy_models.json")
    capsys.readouterr()
    train_toy_models(tmp_path / "models", config, "cpu")
    assert "teacher is there already" in capsys.readouterr().out
    with pytest.raises(InputError, match="holds models with another templates"):
        train_toy_models(tmp_path / "models", replace(config, templates=templates[:1]), "cpu")


def test_bad_sentences_leave_nothing_behind(tmp_path):
    with pytest.raises(InputError, match="--template: expected"):
        train_toy_models(tmp_path / "models", replace(SHORT, templates=("hi",)), "cpu")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    "template",
    ["a picture of person {ing} {object}", "person {ing} {object}", "a person {ing} a {object}"],
)
def test_the_plain_teacher_has_words_for_several_sentences(trained, vocabulary, template):
    teacher = ClipTeacher(ClipConfig(str(trained / "teacher")), torch.device("cpu"))
    prompts = [group[0] for group in interaction_prompts(vocabulary, (template,))]
    assert np.isfinite(teacher.encode_texts(prompts)).all()
