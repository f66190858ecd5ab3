import json
import shutil
from functools import partial

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.utils.errors import InputError
from teacher_cache.teachers import clip as clip_module
from teacher_cache.teachers.clip import ClipConfig, ClipTeacher

CPU = torch.device("cpu")
TINY = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": 32,
        "layers": 1,
        "width": 32,
        "head_width": 16,
        "patch_size": 16,
    },
    "text_cfg": {"width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module", autouse=True)
def names(tmp_path_factory):
    """Adds two small models to open_clip's; one has a larger input."""
    folder = tmp_path_factory.mktemp("configs")
    larger = {**TINY, "vision_cfg": {**TINY["vision_cfg"], "image_size": 64}}
    for name, config in {"tiny-16": TINY, "tiny-16-64": larger}.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return open_clip.CLIP(**TINY).eval()


@pytest.fixture(scope="module")
def pixels():
    return torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    )


def compiled(state):
    """A TorchScript module with these tensors, the form of OpenAI's archives."""
    root = nn.Module()
    for name, tensor in state.items():
        *path, leaf = name.split(".")
        module = root
        for step in path:
            if not hasattr(module, step):
                module.add_module(step, nn.Module())
            module = getattr(module, step)
        if tensor.is_floating_point():
            module.register_parameter(leaf, nn.Parameter(tensor))
        else:
            module.register_buffer(leaf, tensor)
    return torch.jit.script(root)


def plain(state, path):
    torch.save(state, path)


def training_checkpoint(state, path):
    """The form of open_clip's distributed training."""
    state = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": state}, path)


def safetensors(state, path):
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)


def check_embeddings(teacher, model, pixels):
    """Compares the teacher's embeddings with those of open_clip's model."""
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (teacher.mean, teacher.std))
    with torch.no_grad():
        expected = model.encode_image((pixels / 255 - mean) / std, normalize=True).numpy()
    np.testing.assert_allclose(teacher.encode_images(pixels), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("write", "suffix"),
    [(plain, ".pt"), (training_checkpoint, ".pt"), (safetensors, ".safetensors")],
)
def test_checkpoint_files_of_every_form(tmp_path, model, pixels, write, suffix):
    path = tmp_path / f"clip{suffix}"
    write(model.state_dict(), path)
    teacher = ClipTeacher(ClipConfig("tiny-16", str(path)), CPU)
    assert (teacher.name, teacher.image_size, teacher.quick_gelu) == ("tiny-16", 32, False)
    check_embeddings(teacher, model, pixels)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_an_archive_of_openai(tmp_path, model, pixels):
    """It has float16 weights, three integers and QuickGELU."""
    state = {name: tensor.half() for name, tensor in model.state_dict().items()}
    numbers = {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}
    archive = {**state, **{name: torch.tensor(number) for name, number in numbers.items()}}
    torch.jit.save(compiled(archive), tmp_path / "tiny.pt")
    teacher = ClipTeacher(ClipConfig("tiny/16", str(tmp_path / "tiny.pt")), CPU)
    assert (teacher.name, teacher.quick_gelu) == ("tiny-16", True)
    quick = open_clip.CLIP(**TINY, quick_gelu=True).eval()
    quick.load_state_dict(state)
    check_embeddings(teacher, quick, pixels)


def test_a_model_from_the_hub(tmp_path, monkeypatch, model, pixels):
    """In huggingface_hub's cache, from which it is loaded without a network."""
    from huggingface_hub import constants

    repository = tmp_path / "models--owner--clip"
    snapshot = repository / "snapshots" / ("1" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("1" * 40)
    values = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear"}
    settings = {"model_cfg": {**TINY, "quick_gelu": True}, "preprocess_cfg": values}
    (snapshot / "open_clip_config.json").write_text(json.dumps(settings))
    safetensors(model.state_dict(), snapshot / "open_clip_model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    teacher = ClipTeacher(ClipConfig("hf-hub:owner/clip"), CPU)
    assert (teacher.name, teacher.quick_gelu) == ("hf-hub:owner/clip", True)
    assert (teacher.mean, teacher.interpolation) == ((0.5, 0.5, 0.5), "bilinear")
    assert teacher.encode_images(pixels).shape == (2, 32)
    assert teacher.encode_texts(["a picture of person riding horse"]).shape == (1, 32)


@pytest.mark.parametrize(
    ("name", "tag", "quick_gelu"),
    [
        ("ViT-B-16", "openai", True),
        ("ViT-B/16", "OpenAI", True),
        ("RN50x16", "openai", True),
        ("ViT-B-16", "laion2b-s34b-b88k", False),
        ("ViT-B-32-quickgelu", "openai", True),
    ],
)
def test_the_tag_determines_the_kind_of_gelu(monkeypatch, model, name, tag, quick_gelu):
    passed = {}

    def create_model(model_name, **options):
        passed.update(options, name=model_name)
        return model

    monkeypatch.setattr(clip_module.open_clip, "create_model", create_model)
    loaded = clip_module.load_clip(ClipConfig(name, tag))
    assert passed["name"] == name.replace("/", "-")
    assert passed["pretrained"] == tag.lower().replace("-", "_")
    assert loaded.quick_gelu == passed["force_quick_gelu"] == quick_gelu


def test_preprocessing_that_all_tags_of_a_model_have_in_common():
    published = {"a": {"mean": 1, "std": 2, "url": "a"}, "b": {"mean": 1, "std": 3, "url": "b"}}
    assert clip_module._common_preprocessing(published) == {"mean": 1}
    assert clip_module._common_preprocessing({"a": {"mean": 1}, "b": {}}) == {}


@pytest.mark.parametrize(
    ("model", "weights", "text"),
    [
        ("ViT-B-99", None, "--clip-model: expected a folder.*ViT-B-32.*found ViT-B-99"),
        ("RN50", None, "--clip-weights: expected a checkpoint file or a tag of RN50.*openai"),
        ("RN50", "unknown", "file or a tag of RN50.*openai.*found unknown"),
        ("tiny-16", "x", r"file or a tag of tiny-16 \(it has none\), found x"),
        ("hf-hub:a/b", "openai", "--clip-weights: expected"),
        ("{folder}", "openai", "--clip-weights: expected"),
        ("hf-hub:", None, "--clip-model: hf-hub: cannot be downloaded"),
    ],
)
def test_unknown_models_and_weights(tmp_path, model, weights, text):
    with pytest.raises(InputError, match=text) as caught:
        ClipTeacher(ClipConfig(model.format(folder=tmp_path), weights), CPU)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "config", [ClipConfig("hf-hub:unknown/clip"), ClipConfig("RN50", "openai")]
)
def test_without_a_network(monkeypatch, capfd, config):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"cannot be downloaded .*checkpoint file") as caught:
        ClipTeacher(config, CPU)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def cut(state, path):
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:9000])


def text_only(state, path):
    torch.save({name: t for name, t in state.items() if not name.startswith("visual.")}, path)


@pytest.mark.parametrize(
    ("write", "name", "text"),
    [
        (cut, "tiny-16", r"clip\.pt: expected"),
        (lambda _, path: torch.save({"epoch": 3}, path), "tiny-16", "epoch: expected a tensor"),
        (text_only, "tiny-16", "expected weights of tiny-16, found another architecture's"),
        (plain, "tiny-16-64", "expected weights of tiny-16-64, found another architecture's"),
    ],
)
def test_wrong_files(tmp_path, model, capfd, write, name, text):
    path = tmp_path / "clip.pt"
    write(model.state_dict(), path)
    with pytest.raises(InputError, match=text) as caught:
        ClipTeacher(ClipConfig(name, str(path)), CPU)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.fixture(scope="session")
def teacher(shared_dataset):
    return ClipTeacher(ClipConfig(str(shared_dataset / "teacher")), CPU)


@pytest.fixture
def folder(shared_dataset, tmp_path):
    """A copy of the teacher's folder that a test may damage."""
    return shutil.copytree(shared_dataset / "teacher", tmp_path / "teacher")


def test_image_embeddings_equal_those_of_open_clip(teacher, folder):
    """With open_clip's preprocessing of images of the input size."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    batch = torch.stack([preprocess(Image.fromarray(image)) for image in pixels])
    with torch.no_grad():
        expected = model.eval().encode_image(batch, normalize=True).numpy()
    found = teacher.encode_images(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert (teacher.mean, teacher.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_text_embeddings_of_several_batches(teacher):
    sentences = ["a picture of person riding horse", "a picture of person holding ball"]
    many = teacher.encode_texts(sentences * 200)
    assert many.shape == (400, 128) and np.abs(many[0] - many[1]).max() > 1e-4
    np.testing.assert_allclose(np.linalg.norm(many, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(many, np.tile(teacher.encode_texts(sentences), (200, 1)), atol=1e-5)


def edit(name, key, change, **values):
    """Changes one entry of a JSON file in the folder."""

    def damage(folder):
        settings = json.loads((folder / name).read_text())
        change(settings[key], **values)
        (folder / name).write_text(json.dumps(settings))

    return damage


SETTINGS, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
model_cfg, preprocessing = (
    partial(edit, SETTINGS, f"{k}_cfg", dict.update) for k in ("model", "preprocess")
)
# Words in another order have other token ids, and texts other embeddings.
reverse_words = edit("words.json", "words", list.reverse)
other_heads = edit(SETTINGS, "model_cfg", lambda value: value["text_cfg"].update(heads=2))


@pytest.mark.parametrize(
    ("change", "same"), [(lambda folder: None, True), (reverse_words, False), (other_heads, False)]
)
def test_a_folders_name_depends_on_its_configuration_and_words_and_not_its_path(
    teacher, folder, change, same
):
    change(folder)
    other = ClipTeacher(ClipConfig(str(folder)), CPU)
    assert other.weights_digest == teacher.weights_digest
    assert (other.name == teacher.name) == same


@pytest.mark.parametrize("name", ["open_clip_pytorch_model.safetensors", None])
def test_other_file_names_of_weights(teacher, folder, name):
    weights = folder / WEIGHTS
    if name is None:
        torch.save(load_file(weights), folder / "open_clip_pytorch_model.bin")
        weights.unlink()
    else:
        weights.rename(folder / name)
    found = ClipTeacher(ClipConfig(str(folder)), CPU)
    assert found.weights_digest == teacher.weights_digest
    assert found.logit_scale == pytest.approx(1 / 0.07)


def rewrite(name, content):
    return lambda folder: (folder / name).write_text(content)


def with_nan(folder):
    state = load_file(folder / WEIGHTS)
    state["text_projection"].flatten()[7] = torch.nan
    save_file(state, folder / WEIGHTS)


def not_square(folder):
    model_cfg(vision_cfg={**TINY["vision_cfg"], "image_size": [64, 96]})(folder)
    settings = json.loads((folder / SETTINGS).read_text())
    safetensors(open_clip.CLIP(**settings["model_cfg"]).state_dict(), folder / WEIGHTS)


@pytest.mark.parametrize(
    "damage, text",
    [
        (lambda folder: (folder / SETTINGS).unlink(), "teacher: expected"),
        (lambda folder: (folder / WEIGHTS).unlink(), rf"{WEIGHTS}: no such"),
        (rewrite(WEIGHTS, "cut"), rf"{WEIGHTS}: expected"),
        (with_nan, r"text_projection: .* 1 of "),
        (rewrite(SETTINGS, '{"preprocess_cfg": {}}'), "model_cfg: expected"),
        (model_cfg(legs=4), "model_cfg: expected"),
        (model_cfg(embed_dim=64), "found another architecture"),
        (rewrite("words.json", "{}"), "words: expected"),
        (preprocessing(interpolation="lanczos"), r"preprocess_cfg\.interpolation: expected"),
        (preprocessing(mean=[0.5]), r"preprocess_cfg\.mean: expected three numbers"),
        (preprocessing(std=[0.5, 0, 0.5]), r"preprocess_cfg\.std: expected three numbers above 0"),
        (not_square, "--clip-model: expected"),
    ],
)
def test_damaged_folders(folder, damage, text):
    damage(folder)
    with pytest.raises(InputError, match=text) as caught:
        ClipTeacher(ClipConfig(str(folder)), CPU)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_bfloat16(teacher, folder):
    regions = torch.arange(4 * 3 * 64 * 64).view(4, 3, 64, 64).mul(37).to(torch.uint8)
    low = ClipTeacher(ClipConfig(str(folder), precision="bfloat16"), CPU)
    exact, rough = teacher.encode_images(regions), low.encode_images(regions)
    assert (teacher.precision, low.precision) == ("float32", "bfloat16")
    np.testing.assert_allclose(np.linalg.norm(rough, axis=1), 1, atol=1e-5)
    assert 1e-6 < np.abs(exact - rough).max() < 0.05
