import sys

import pytest
import torch

from pipeline.utils.errors import InputError
from teacher_cache.teachers.base import Teacher
from teacher_cache.teachers.load import (
    DEFAULT_TEACHER,
    TEACHERS,
    TeacherConfig,
    find_teacher_class,
    load_teacher,
)

CPU = torch.device("cpu")
MODULE = """
from pathlib import Path
from teacher_cache.teachers.base import Teacher

class Own(Teacher):
    def __init__(self, device, weights: Path, size: int = 3, fast: bool = False, note=""):
        super().__init__(device)
        self.values = weights, size, fast, note

    def score(self, images, pairs, vocabulary):
        return None
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Configuration of a teacher in a module of its own folder, with the given settings."""
    (tmp_path / "own_teacher_module.py").write_text(MODULE)
    (tmp_path / "weights").mkdir()

    monkeypatch.chdir(tmp_path)

    def make(*texts):
        return TeacherConfig.resolve("own_teacher_module:Own", texts)

    yield make
    sys.path[:] = [path for path in sys.path if path != str(tmp_path)]
    sys.modules.pop("own_teacher_module", None)


def test_the_default_teacher_is_known_by_name():
    assert find_teacher_class(TeacherConfig().name).__name__ == "ClipTeacher"
    assert DEFAULT_TEACHER in TEACHERS
    assert all(issubclass(find_teacher_class(name), Teacher) for name in TEACHERS)


def test_a_copy_of_this_package_in_the_current_folder_is_not_used(tmp_path, monkeypatch):
    copy = tmp_path / "teacher_cache/teachers/clip.py"
    copy.parent.mkdir(parents=True)
    copy.touch()
    monkeypatch.chdir(tmp_path)
    assert find_teacher_class(DEFAULT_TEACHER).__name__ == "ClipTeacher"


def test_settings_have_the_types_of_the_signature(own, tmp_path):
    (tmp_path / "5").touch()
    config = own("weights=weights", "size=5", "fast=true", "note=a=b")
    assert config.name == f"{tmp_path}/own_teacher_module:Own"
    assert dict(config.settings)["weights"] == str(tmp_path / "weights")
    teacher = load_teacher(config, CPU)
    assert teacher.values == (tmp_path / "weights", 5, True, "a=b")
    assert teacher.name == "Own" and teacher.device == CPU


def test_files_are_in_the_fingerprint_by_their_content(own, tmp_path):
    def parts(folder):
        return load_teacher(own(f"weights={tmp_path / folder}", "size=1"), CPU).fingerprint_parts()

    (tmp_path / "weights/a.bin").write_bytes(b"1")
    first = parts("weights")
    assert first["teacher"] == "Own" and first["teacher.settings.size"] == "1"
    (tmp_path / "weights").rename(tmp_path / "moved")
    assert parts("moved") == first
    (tmp_path / "moved/a.bin").write_bytes(b"2")
    assert parts("moved") != first


def test_what_a_teacher_names_takes_the_place_of_a_setting(own, tmp_path):
    teacher = load_teacher(own(f"weights={tmp_path / 'weights'}"), CPU)
    teacher.fingerprint = lambda: {"weights": "own digest"}
    assert teacher.fingerprint_parts() == {"teacher": "Own", "teacher.weights": "own digest"}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ((), "missing a required argument: 'weights'"),
        (("weights=w", "sizes=1"), "weights, size, fast, note.*, found sizes"),
        (("weights=w", "size=big"), "size: expected a whole number, found big"),
    ],
)
def test_wrong_settings(own, texts, message):
    with pytest.raises(InputError, match=f"--teacher-set: .*{message}"):
        load_teacher(own(*texts), CPU)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, f"{DEFAULT_TEACHER}.*{name}") for name in ("vgg", "module:", ":Class")),
        ("missing.module:Class", r"a module .* missing\.module"),
        ("os:getcwd", r"a class of .*os\.py, found getcwd"),
        ("pathlib:Path", r"a subclass of teacher_cache\S*\.Teacher, found pathlib:Path"),
        ("teacher_cache.teachers.base:Teacher", "a class with the method score, found"),
    ],
)
def test_other_names(name, expected):
    with pytest.raises(InputError, match=f"--teacher: expected {expected}"):
        find_teacher_class(name)
