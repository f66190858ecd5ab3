"""The teacher of docs/how-to/teachers.md, from the page: build, two workers, resume, verify."""

import json
import re
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run_command
from torchvision.models import resnet18

from teacher_cache.cli import main
from teacher_cache.reader.cache import open_cache
from teacher_cache.reader.format import MANIFEST, SHARDS
from teacher_cache.reader.soft_targets import object_actions

PAGE = Path(__file__).parents[2] / "docs/how-to/teachers.md"
TEACHER = ("--teacher", "my_teacher:VerbClassifier")
SETTINGS = ("--teacher-set", "weights=verbs.pth", "--teacher-set", "temperature=2")
run = partial(run_command, main, "eoid-cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, vocabulary):
    """Working folder with the page's module and random weights."""
    folder = tmp_path_factory.mktemp("own")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (folder / "my_teacher.py").write_text(code)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        state = resnet18(num_classes=vocabulary.num_verbs).state_dict()
    torch.save(state, folder / "verbs.pth")
    return folder


@pytest.fixture
def build(folder, shared_dataset, tmp_path, monkeypatch):
    """`build(out, *words)`: the page's command on the test's dataset with annotated boxes."""
    monkeypatch.chdir(folder)
    threads = torch.get_num_threads()

    def run_build(out, *words, settings=SETTINGS):
        options = ("--candidates", "annotated", "--images-per-shard", 3, "--device", "cpu")
        options += ("--set", "threads=1")
        return run("build", shared_dataset, "--out", out, *options, *TEACHER, *settings, *words)

    yield run_build
    torch.set_num_threads(threads)
    sys.path[:] = [path for path in sys.path if path != str(folder)]
    sys.modules.pop("my_teacher", None)


@pytest.fixture
def cache(folder, build):
    """The cache of a build in one process; built once."""
    out = folder / "cache"
    if not out.is_dir():
        done = build(out)
        assert done.returncode == 0, done.stderr
    return out


def test_an_estimate(cache, build, shared_dataset):
    """Its time is extrapolated by pairs, because it may have no regions."""
    words = ("--candidates", "annotated", "--device", "cpu", "--sample", 3, "--json")
    done = run("plan", shared_dataset, *words, *TEACHER, *SETTINGS)
    assert done.returncode == 0, done.stderr
    estimate, counts = json.loads(done.stdout), open_cache(cache).manifest["counts"]
    assert estimate["pairs"] == {
        "count": counts["pairs"],
        "is_counted": True,
        "standard_error": None,
    }
    assert estimate["hours"]["teacher"] > 0


def test_the_cache(cache, vocabulary):
    opened = open_cache(cache)
    parts = opened.manifest["parts"]
    assert opened.probabilities == parts["probabilities"] == "independent"
    assert parts["teacher"] == "verb classifier" and parts["teacher.settings.temperature"] == "2"
    assert parts["teacher.version"] == 1 and len(parts["teacher.settings.weights"]) == 64
    assert not {"prompts", "clip.model"} & parts.keys()
    sums = []
    for image_id in opened.image_ids:
        outputs = opened[image_id]
        assert outputs.embeddings is None
        actions = object_actions(vocabulary)[outputs.pairs.object_labels]
        assert ((outputs.probabilities > 0) == actions).all()
        sums += outputs.probabilities.sum(1).tolist()
    assert max(sums) > 1.1


def test_resuming_gives_the_same_bytes(cache, build, contents, tmp_path):
    out = tmp_path / "resumed"
    shutil.copytree(cache, out)
    (out / MANIFEST).unlink()
    (out / SHARDS / "00001.h5").unlink()
    done = build(out, settings=SETTINGS[:2])
    assert done.returncode == 2 and "temperature: 2, now nothing" in done.stderr
    done = build(out)
    assert done.returncode == 0 and "resuming after 4 of 7 images" in done.stderr, done.stderr
    assert contents(out) == contents(cache)


def test_a_repair_runs_code_only_if_it_is_named(cache, build, contents, tmp_path):
    out = tmp_path / "damaged"
    shutil.copytree(cache, out)
    shard = out / SHARDS / "00001.h5"
    shard.write_bytes(shard.read_bytes()[:-9])
    # Loaded by the build, if this is the first test that needs the cache.
    sys.modules.pop("my_teacher", None)
    for words in ((), ("--teacher", "my_teacher:Other")):
        done = run("verify", out, "--repair", *words)
        assert done.returncode == 2
        (line,) = [text for text in done.stderr.splitlines() if "--teacher" in text]
        assert f"expected {Path.cwd()}/my_teacher:VerbClassifier" in line
    assert "my_teacher" not in sys.modules
    done = run("verify", out, "--repair", *TEACHER)
    assert done.returncode == 0, done.stderr
    assert contents(out) == contents(cache)


def test_commands_on_the_cache(cache, build, shared_dataset, tmp_path):
    assert run("verify", cache, "--data", shared_dataset).returncode == 0
    done = run("inspect", cache, "--json", tmp_path / "inspect.json")
    assert done.returncode == 0 and "independent" in done.stdout
    entropy = json.loads((tmp_path / "inspect.json").read_text())["entropy"]["annotated"]
    assert 0 < entropy["mean"] <= 1
    image = open_cache(cache).image_ids[0]
    drawn = ("--data", shared_dataset, "--out", tmp_path / "pairs.png")
    assert run("show", cache, image, *drawn).returncode == 0
    assert run("evaluate", cache, "--data", shared_dataset).returncode == 0
    shutil.copytree(cache, tmp_path / "copy")
    done = run("merge", cache, tmp_path / "copy", "--out", tmp_path / "merged")
    assert done.returncode == 0, done.stderr
    assert open_cache(tmp_path / "merged").probabilities == "independent"
    for words in (
        ("rescore", cache, "--temperature", 1, "--out", tmp_path / "rescored"),
        ("prompts", cache, "--add", "pulling:chair", "--out", tmp_path / "more.h5"),
    ):
        done = run(*words)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
        assert "verb classifier has no text encoder" in done.stderr


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--clip-model", "toy"), "--clip-model: expected none with --teacher"),
        (("--template", "{ing} {object}"), "--template: expected none with verb classifier"),
        (("--teacher-set", "size=3"), "(weights, temperature), found size"),
        (("--teacher-set", "temperature=hot"), "temperature: expected a number, found hot"),
        (("--teacher-set", "hot"), "--teacher-set: expected KEY=VALUE, found hot"),
        (("--teacher", "my_teacher"), "expected open_clip, vlm or module:Class, found my_teacher"),
        (("--teacher", "my_teacher:Missing"), "--teacher: expected a class of"),
        (("--teacher", "missing_module:T"), "No module named 'missing_module'"),
    ],
)
def test_wrong_options_are_told_in_one_line(build, tmp_path, words, text):
    done = build(tmp_path / "cache", *words)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert text in done.stderr and not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_two_workers_give_the_same_bytes(cache, build, contents, tmp_path):
    done = build(tmp_path / "cache", "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "cache") == contents(cache)


@pytest.mark.slow
@pytest.mark.usefixtures("build")
def test_interrupted_and_shared_builds(folder, shared_dataset, build_config, check_interruptions):
    config = build_config(
        shared_dataset,
        candidates="annotated",
        threads=1,
        teacher=f"{folder}/my_teacher:VerbClassifier",
        teacher_settings=(f"weights={folder}/verbs.pth",),
    )
    check_interruptions(config)


TEXT_TEACHER = """
from pathlib import Path

from teacher_cache.teachers.clip import ClipConfig, ClipTeacher
from teacher_cache.teachers.text_image import TextImageTeacher


class Wrapped(TextImageTeacher):
    def __init__(self, device, clip: Path):
        super().__init__(device)
        self.clip = ClipTeacher(ClipConfig(str(clip)), device)
        self.image_size, self.logit_scale = self.clip.image_size, self.clip.logit_scale
        self.encode_texts, self.encode_images = self.clip.encode_texts, self.clip.encode_images

    encode_texts = encode_images = None
"""


@pytest.fixture
def text_cache(folder, build, shared_dataset):
    """A cache of a user's own teacher with a text encoder, and the words that name it."""
    (folder / "my_text_teacher.py").write_text(TEXT_TEACHER)
    teacher = ("--teacher", "my_text_teacher:Wrapped")
    out = folder / "text-cache"
    if not out.is_dir():
        done = build(out, *teacher, settings=("--teacher-set", f"clip={shared_dataset}/teacher"))
        assert done.returncode == 0, done.stderr
    yield out, teacher
    sys.modules.pop("my_text_teacher", None)


def test_a_text_teacher_gives_the_outputs_of_the_clip_that_it_wraps(text_cache, finished):
    found, expected = open_cache(text_cache[0]), open_cache(finished)
    assert found.manifest["parts"]["teacher"] == "Wrapped" and found.probabilities == "softmax"
    assert found.text_model not in (None, expected.text_model)
    text = expected.prompt_embeddings
    assert found.prompt_embeddings.prompts == text.prompts
    np.testing.assert_array_equal(found.prompt_embeddings.embeddings, text.embeddings)
    for image_id in found.image_ids:
        rows = [each[image_id].pairs.sources == 0 for each in (found, expected)]
        arrays = [
            each[image_id].probabilities[row]
            for each, row in zip((found, expected), rows, strict=True)
        ]
        np.testing.assert_allclose(*arrays, atol=2e-3)


def test_rescoring_and_prompts_need_the_name_of_the_teacher(text_cache, tmp_path):
    cache, teacher = text_cache
    commands = (
        ("rescore", cache, "--template", "photo of {ing} {object}", "--out", tmp_path / "new"),
        ("prompts", cache, "--add", "kicking:dog", "--out", tmp_path / "more.h5"),
    )
    for words in commands:
        done = run(*words)
        assert done.returncode == 2 and "my_text_teacher:Wrapped of the cache" in done.stderr
        done = run(*words, *teacher)
        assert done.returncode == 0, done.stderr
    assert open_cache(tmp_path / "new").prompt_embeddings.prompts[0][0].startswith("photo of")
    # A new temperature needs no text encoder.
    words = ("rescore", tmp_path / "new", "--temperature", 1, "--out", tmp_path / "newer")
    assert run(*words).returncode == 0
    done = run("verify", tmp_path / "newer")
    assert done.returncode == 0, done.stderr
