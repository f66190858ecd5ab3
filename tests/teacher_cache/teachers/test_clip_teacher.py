import json
import shutil

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pipeline.utils.errors import InputError
from teacher_cache.teachers.clip import ClipConfig, ClipTeacher, build_clip

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def folder(shared_dataset):
    return shared_dataset / "teacher"


@pytest.fixture(scope="session")
def teacher(folder):
    return ClipTeacher(ClipConfig(str(folder)), CPU)


@pytest.fixture
def copied(folder, tmp_path):
    """The teacher's folder, for damaging."""
    return shutil.copytree(folder, tmp_path / "teacher")


def test_the_folders_own_preprocessing(teacher):
    assert teacher.image_size == 64
    assert teacher.mean == (0.5, 0.4, 0.3)
    assert teacher.std == (0.2, 0.3, 0.4)


def test_images_are_encoded_as_open_clip_does(teacher, folder):
    """Its own preprocessing of a picture that already has the input size."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    batch = torch.stack([preprocess(Image.fromarray(image)) for image in pixels])
    with torch.no_grad():
        wanted = model.eval().encode_image(batch, normalize=True).numpy()
    found = teacher.encode_images(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_weights_that_are_not_finite(copied):
    file = copied / "open_clip_model.safetensors"
    state = load_file(file)
    state["text_projection"].flatten()[7] = torch.nan
    save_file(state, file)
    with pytest.raises(InputError, match=r"text_projection: .* 1 of "):
        ClipTeacher(ClipConfig(str(copied)), CPU)


def test_texts(teacher):
    sentences = ["a picture of person riding horse", "a picture of person holding ball"]
    many = teacher.encode_texts(sentences * 200)
    assert many.shape == (400, 128)
    np.testing.assert_allclose(np.linalg.norm(many, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(many[:2], teacher.encode_texts(sentences), atol=1e-5)
    assert np.abs(many[0] - many[1]).max() > 1e-4
    with pytest.raises(InputError, match="found 'zebra'"):
        teacher.encode_texts(["a zebra"])


def test_the_temperature(teacher, folder):
    state = load_file(folder / "open_clip_model.safetensors")
    assert teacher.logit_scale == pytest.approx(float(state["logit_scale"].exp()))


def test_a_models_name_follows_its_settings_and_not_its_place(teacher, copied):
    moved = ClipTeacher(ClipConfig(str(copied)), CPU)
    assert (moved.name, moved.weights_digest) == (teacher.name, teacher.weights_digest)
    settings = json.loads((copied / "open_clip_config.json").read_text())
    settings["model_cfg"]["text_cfg"]["heads"] = 2
    (copied / "open_clip_config.json").write_text(json.dumps(settings))
    other = ClipTeacher(ClipConfig(str(copied)), CPU)
    assert other.weights_digest == teacher.weights_digest
    assert other.name != teacher.name


def test_a_models_name_follows_its_words(teacher, copied):
    """Words in another order are other tokens, and other answers."""
    words = json.loads((copied / "words.json").read_text())
    words["words"].reverse()
    (copied / "words.json").write_text(json.dumps(words))
    other = ClipTeacher(ClipConfig(str(copied)), CPU)
    assert other.weights_digest == teacher.weights_digest and other.name != teacher.name


@pytest.mark.parametrize("name", ["open_clip_pytorch_model.safetensors", None])
def test_other_names_of_a_folders_weights(teacher, copied, name):
    weights = copied / "open_clip_model.safetensors"
    if name is None:
        torch.save(load_file(weights), copied / "open_clip_pytorch_model.bin")
        weights.unlink()
    else:
        weights.rename(copied / name)
    found = ClipTeacher(ClipConfig(str(copied)), CPU)
    assert found.weights_digest == teacher.weights_digest


def test_new_models_depend_on_the_generator_alone(folder):
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    before = torch.random.get_rng_state()
    first, same, other = (
        build_clip(config, torch.Generator().manual_seed(seed)).state_dict() for seed in (1, 1, 2)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    name = "visual.conv1.weight"
    assert torch.equal(first[name], same[name])
    assert not torch.equal(first[name], other[name])


def empty_folder(folder):
    for path in folder.iterdir():
        path.unlink()


def no_weights(folder):
    (folder / "open_clip_model.safetensors").unlink()


def cut_weights(folder):
    path = folder / "open_clip_model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def no_model_cfg(folder):
    (folder / "open_clip_config.json").write_text('{"preprocess_cfg": {}}')


def unknown_setting(folder):
    settings = json.loads((folder / "open_clip_config.json").read_text())
    settings["model_cfg"]["legs"] = 4
    (folder / "open_clip_config.json").write_text(json.dumps(settings))


def other_width(folder):
    settings = json.loads((folder / "open_clip_config.json").read_text())
    settings["model_cfg"]["embed_dim"] = 64
    (folder / "open_clip_config.json").write_text(json.dumps(settings))


def broken_words(folder):
    (folder / "words.json").write_text("[]")


def preprocessing(**values):
    """A damage to the folder's preprocessing values."""

    def damage(folder):
        settings = json.loads((folder / "open_clip_config.json").read_text())
        settings["preprocess_cfg"].update(values)
        (folder / "open_clip_config.json").write_text(json.dumps(settings))

    return damage


def not_square(folder):
    settings = json.loads((folder / "open_clip_config.json").read_text())
    settings["model_cfg"]["vision_cfg"] = {
        "image_size": [64, 96],
        "layers": 1,
        "width": 32,
        "head_width": 16,
        "patch_size": 16,
    }
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    model = open_clip.CLIP(**settings["model_cfg"])
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    (folder / "open_clip_model.safetensors").unlink()


@pytest.mark.parametrize(
    "damage, text",
    [
        (empty_folder, "teacher: expected"),
        (no_weights, r"open_clip_model\.safetensors: no such"),
        (cut_weights, r"open_clip_model\.safetensors: expected"),
        (no_model_cfg, "model_cfg: expected"),
        (unknown_setting, "model_cfg: expected"),
        (other_width, "found another architecture"),
        (broken_words, "words: expected"),
        (preprocessing(interpolation="lanczos"), "interpolation: expected"),
        (preprocessing(mean=[0.5]), r"preprocess_cfg.mean: expected"),
        (preprocessing(std=[0.5, 0, 0.5]), "preprocess_cfg.std: expected three numbers above 0"),
        (not_square, "--clip-model: expected"),
    ],
)
def test_a_damaged_folder_is_one_clear_line(copied, damage, text):
    damage(copied)
    with pytest.raises(InputError, match=text) as caught:
        ClipTeacher(ClipConfig(str(copied)), CPU)
    assert "\n" not in str(caught.value)
    assert str(copied) in str(caught.value)


def test_shorter_numbers_for_the_image_tower(teacher, folder):
    regions = torch.arange(4 * 3 * 64 * 64).view(4, 3, 64, 64).mul(37).to(torch.uint8)
    quick = ClipTeacher(ClipConfig(str(folder), precision="bfloat16"), CPU)
    exact, rough = teacher.encode_images(regions), quick.encode_images(regions)
    assert (teacher.precision, quick.precision) == ("float32", "bfloat16")
    np.testing.assert_allclose(np.linalg.norm(rough, axis=1), 1, atol=1e-5)
    assert 1e-6 < np.abs(exact - rough).max() < 0.05
