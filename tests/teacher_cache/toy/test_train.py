import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.toy.scene import draw_scene
from pipeline.types import Annotation
from pipeline.utils.errors import InputError
from pipeline.utils.files import read_json
from student.config import get_preset
from student.models.detector import HOIDetector
from student.weights.pretrained import load_pretrained
from teacher_cache.detectors.base import DetectorConfig
from teacher_cache.detectors.load import load_detector
from teacher_cache.detectors.torchvision import recognise_architecture
from teacher_cache.teachers.clip import ClipConfig, ClipTeacher
from teacher_cache.teachers.prompts import interaction_prompts
from teacher_cache.toy import train
from teacher_cache.toy.train import (
    ToyModelsConfig,
    captioned_regions,
    draw_training_data,
    train_toy_models,
)

SHORT = ToyModelsConfig(num_images=16, teacher_steps=2, detector_epochs=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Models trained in this process, where the libraries are loaded already."""

    def run(jobs):
        for job, _ in jobs.values():
            job(lambda count, note: None)

    folder, threads = tmp_path_factory.mktemp("models") / "models", torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "run_in_processes", run)
        train_toy_models(folder, SHORT, "cpu")
    torch.set_num_threads(threads)
    return folder


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_files_of_the_models(trained):
    assert set(content(trained)) == {
        "detector.safetensors",
        "teacher/open_clip_config.json",
        "teacher/open_clip_model.safetensors",
        "teacher/words.json",
        "toy_models.json",
    }
    recipe = read_json(trained / "toy_models.json")
    assert recipe["num_images"] == 16 and recipe["teacher_steps"] == 2 and recipe["seed"] == 0


def test_the_teacher_can_be_loaded_by_a_build(trained, vocabulary):
    teacher = ClipTeacher(ClipConfig(str(trained / "teacher")), torch.device("cpu"))
    prompts = [prompt for group in interaction_prompts(vocabulary) for prompt in group]
    texts = teacher.encode_texts(prompts)
    images = teacher.encode_images(torch.zeros((2, 3, 64, 64), dtype=torch.uint8))
    assert texts.shape == (vocabulary.num_interactions, 128) and images.shape == (2, 128)
    assert len(np.unique(texts.round(5), axis=0)) == len(set(prompts))


def test_the_detector_serves_a_build_and_a_student(trained, vocabulary):
    weights = trained / "detector.safetensors"
    assert recognise_architecture(weights, vocabulary) == "toy"
    load_detector(DetectorConfig("toy", str(weights)), vocabulary, torch.device("cpu"))
    sizes = (vocabulary.num_objects, vocabulary.num_verbs, vocabulary.person)
    model = HOIDetector(get_preset("toy", *sizes).model)
    report = load_pretrained(model, weights, vocabulary)
    assert report.kind == "a toy detector"
    loaded = {name for names in report.used.values() for name in names}
    assert loaded == {f"backbone.{name}" for name in model.backbone.state_dict()}


def test_a_second_call_trains_nothing(trained, messages):
    before = content(trained)
    train_toy_models(trained, SHORT, "cpu")
    assert content(trained) == before
    assert "are trained already" in "\n".join(messages)


@pytest.mark.slow
def test_only_the_missing_model_is_trained(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "models")
    weights, detector = "teacher/open_clip_model.safetensors", folder / "detector.safetensors"
    (folder / weights).unlink()
    before = detector.stat().st_mtime_ns
    train_toy_models(folder, SHORT, "cpu")
    assert (folder / weights).is_file() and detector.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "another seed"),
        ({"seed": 1, "detector_epochs": 2}, "another seed and detector_epochs"),
    ],
)
def test_models_of_other_settings_are_refused(trained, change, message):
    before = content(trained)
    with pytest.raises(InputError, match=f"contains models with {message}"):
        train_toy_models(trained, replace(SHORT, **change), "cpu")
    assert content(trained) == before


@pytest.mark.parametrize(
    ("config", "device", "message"),
    [
        (SHORT, "cpu", "found other files"),
        (SHORT, "abacus", "--device"),
        (replace(SHORT, templates=("hi",)), "cpu", "--template: expected"),
    ],
)
def test_bad_input_leaves_no_files(tmp_path, config, device, message):
    (tmp_path / "thesis.tex").write_text("hours of work")
    with pytest.raises(InputError, match=message):
        train_toy_models(tmp_path, config, device)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.slow
def test_a_teacher_of_several_templates_without_a_detector(trained, tmp_path, vocabulary, messages):
    templates = ("a picture of person {ing} {object}", "photo {ing} the {object}")
    config = replace(SHORT, templates=templates, models=("teacher",))
    train_toy_models(tmp_path / "models", config, "cpu")
    assert not (tmp_path / "models/detector.safetensors").exists()
    words = read_json(tmp_path / "models/teacher/words.json")["words"]
    assert {"photo", "the", "person"} <= set(words)
    assert read_json(tmp_path / "models/toy_models.json")["templates"] == list(templates)
    messages.clear()
    train_toy_models(tmp_path / "models", config, "cpu")
    assert "teacher is trained already" in "\n".join(messages)
    with pytest.raises(InputError, match="contains models with another templates"):
        train_toy_models(tmp_path / "models", replace(config, templates=templates[:1]), "cpu")


@pytest.mark.parametrize("template", ["person {ing} {object}", "a person {ing} a {object}"])
def test_the_default_teacher_knows_the_words_of_other_templates(trained, vocabulary, template):
    teacher = ClipTeacher(ClipConfig(str(trained / "teacher")), torch.device("cpu"))
    prompts = [group[0] for group in interaction_prompts(vocabulary, (template,))]
    assert np.isfinite(teacher.encode_texts(prompts)).all()


def test_regions_of_an_image_without_interactions(vocabulary):
    empty = Annotation(
        "a.jpg", np.zeros((0, 4)), np.zeros(0, dtype=np.int64), np.zeros((0, 3), dtype=np.int64)
    )
    boxes, captions = captioned_regions(empty, vocabulary, np.random.default_rng(0))
    assert boxes.shape == (0, 4) and captions == []


def test_every_interaction_gives_its_union_box_and_a_displaced_one(vocabulary):
    _, annotation = draw_scene(0, "models", 4)
    boxes, captions = captioned_regions(annotation, vocabulary, np.random.default_rng(0))
    assert len(boxes) == len(captions) == 2 * len(annotation.hois)
    prompts = interaction_prompts(vocabulary)
    for row, (human, target, verb) in enumerate(annotation.hois):
        pair = annotation.boxes[[human, target]]
        union = np.concatenate([pair[:, :2].min(0), pair[:, 2:].max(0)])
        size = np.tile(union[2:] - union[:2], 2)
        np.testing.assert_allclose(boxes[2 * row], union, rtol=1e-6)
        moved = np.abs(boxes[2 * row + 1] - union) / size
        assert 0 < moved.max() <= 0.06
        (prompt,) = prompts[vocabulary.interaction_ids[verb, annotation.labels[target]]]
        assert captions[2 * row] == captions[2 * row + 1] == prompt


def test_training_images_of_several_chunks_are_in_order():
    data = draw_training_data(2, 53, 24)
    assert data.images.shape == (53, 128, 128, 3) and data.images.dtype == np.uint8
    assert len(data.crops) == len(data.captions)
    assert data.crops.shape[1:] == (24, 24, 3)
    for index in (0, 49, 50, 52):
        image, annotation = draw_scene(2, "models", index)
        np.testing.assert_array_equal(data.images[index], np.asarray(image))
        assert data.annotations[index].image_id == annotation.image_id
    labels = sum(len(annotation.hois) for annotation in data.annotations)
    assert len(data.crops) == 2 * labels
    names = {annotation.image_id for annotation in data.annotations}
    assert not names & {draw_scene(2, part, 0)[1].image_id for part in ("train", "test")}
