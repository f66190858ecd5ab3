"""Models of open_clip by name, from checkpoint files of every kind."""

import json

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.utils.errors import InputError
from teacher_cache.teachers import clip as clip_models
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
    """Two small models among open_clip's names; one takes larger pictures."""
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
    """A TorchScript module with these tensors, as OpenAI packed theirs."""
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
    """As open_clip's training writes it, from several processes."""
    state = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": state}, path)


def safetensors(state, path):
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)


@pytest.mark.parametrize(
    ("write", "suffix"),
    [(plain, ".pt"), (training_checkpoint, ".pt"), (safetensors, ".safetensors")],
)
def test_every_file_form_is_the_same_model(tmp_path, model, pixels, write, suffix):
    path = tmp_path / f"clip{suffix}"
    write(model.state_dict(), path)
    teacher = ClipTeacher(ClipConfig("tiny-16", str(path)), CPU)
    assert (teacher.name, teacher.image_size, teacher.quick_gelu) == ("tiny-16", 32, False)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (teacher.mean, teacher.std))
    with torch.no_grad():
        wanted = model.encode_image((pixels / 255 - mean) / std, normalize=True).numpy()
    np.testing.assert_allclose(teacher.encode_images(pixels), wanted, atol=1e-5)
    digest = ClipTeacher(ClipConfig("tiny-16", str(path)), CPU).weights_digest
    assert digest == teacher.weights_digest


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_an_archive_of_openais(tmp_path, model, pixels):
    """Half precision, three numbers beside the weights, and OpenAI's own GELU."""
    state = {name: tensor.half() for name, tensor in model.state_dict().items()}
    numbers = {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}
    state |= {name: torch.tensor(number) for name, number in numbers.items()}
    torch.jit.save(compiled(state), tmp_path / "tiny.pt")
    teacher = ClipTeacher(ClipConfig("tiny/16", str(tmp_path / "tiny.pt")), CPU)
    assert (teacher.name, teacher.quick_gelu) == ("tiny-16", True)
    quick = open_clip.CLIP(**TINY, quick_gelu=True).eval()
    quick.load_state_dict(
        {name: tensor.half().float() for name, tensor in model.state_dict().items()}
    )
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (teacher.mean, teacher.std))
    with torch.no_grad():
        wanted = quick.encode_image((pixels / 255 - mean) / std, normalize=True).numpy()
    np.testing.assert_allclose(teacher.encode_images(pixels), wanted, atol=1e-5)


def test_a_model_of_the_hub(tmp_path, monkeypatch, model, pixels):
    """As the hub's client leaves it in its own folder, which works without a network too."""
    from huggingface_hub import constants

    place = tmp_path / "models--somebody--clip"
    snapshot = place / "snapshots" / ("1" * 40)
    snapshot.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs/main").write_text("1" * 40)
    values = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear"}
    settings = {"model_cfg": {**TINY, "quick_gelu": True}, "preprocess_cfg": values}
    (snapshot / "open_clip_config.json").write_text(json.dumps(settings))
    safetensors(model.state_dict(), snapshot / "open_clip_model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    teacher = ClipTeacher(ClipConfig("hf-hub:somebody/clip"), CPU)
    assert (teacher.name, teacher.quick_gelu) == ("hf-hub:somebody/clip", True)
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
def test_a_tag_decides_the_kind_of_gelu(monkeypatch, model, name, tag, quick_gelu):
    asked = {}

    def create_model(model_name, **options):
        asked.update(options, name=model_name)
        return model

    monkeypatch.setattr(clip_models.open_clip, "create_model", create_model)
    opened = clip_models.load_clip(ClipConfig(name, tag))
    assert asked["name"] == name.replace("/", "-")
    assert asked["pretrained"] == tag.lower().replace("-", "_")
    assert opened.quick_gelu == asked["force_quick_gelu"] == quick_gelu


def test_a_file_takes_the_preprocessing_that_its_models_tags_agree_on():
    agreed = clip_models._common_preprocessing
    published = {
        tag: open_clip.get_pretrained_cfg("ViT-B-16-SigLIP", tag)
        for tag in open_clip.list_pretrained_tags_by_model("ViT-B-16-SigLIP")
    }
    assert agreed(published)["mean"] == (0.5, 0.5, 0.5)
    assert agreed({}) == {}
    a, b = {"mean": 1, "std": 2, "url": "a"}, {"mean": 1, "std": 3, "url": "b"}
    assert agreed({"a": a, "b": b}) == {"mean": 1}
    assert agreed({"a": {"mean": 1}, "b": {}}) == {}


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (ClipConfig("ViT-B-99"), "--clip-model: expected a folder.*ViT-B-32.*found ViT-B-99"),
        (ClipConfig("RN50"), "--clip-weights: expected a checkpoint file or a tag of RN50.*openai"),
        (ClipConfig("RN50", "nobody"), "expected a file or a tag of RN50.*openai.*found nobody"),
        (ClipConfig("tiny-16", "x"), r"a file or a tag of tiny-16 \(it has none\), found x"),
        (ClipConfig("hf-hub:a/b", "openai"), "--clip-weights: expected"),
        (ClipConfig("hf-hub:"), "--clip-model: hf-hub: cannot be downloaded"),
    ],
)
def test_models_that_are_not_there(config, text):
    with pytest.raises(InputError, match=text) as caught:
        ClipTeacher(config, CPU)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("config", [ClipConfig("hf-hub:nobody/clip"), ClipConfig("RN50", "openai")])
def test_without_a_network(monkeypatch, capfd, config):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"cannot be downloaded .*checkpoint file") as caught:
        ClipTeacher(config, CPU)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def empty(state, path):
    path.write_bytes(b"")


def cut(state, path):
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:9000])


def text_only(state, path):
    torch.save({name: t for name, t in state.items() if not name.startswith("visual.")}, path)


def no_tensors(state, path):
    torch.save({"epoch": 3}, path)


@pytest.mark.parametrize(
    ("write", "name", "text"),
    [
        (empty, "tiny-16", r"clip\.pt: expected"),
        (cut, "tiny-16", r"clip\.pt: expected"),
        (no_tensors, "tiny-16", "epoch: expected a tensor, found int"),
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


def test_a_folder_wants_no_weights(shared_dataset):
    folder = str(shared_dataset / "teacher")
    with pytest.raises(InputError, match=r"--clip-weights: expected.*found openai"):
        ClipTeacher(ClipConfig(folder, "openai"), CPU)
