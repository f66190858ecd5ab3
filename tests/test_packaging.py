"""Wheel and sdist hold what they need and run outside the checkout."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from pipeline.vocabulary import BUILTIN_VOCABULARIES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "teacher_cache", "student", "evaluation")
MODULE = "eoid.py"
SETUP_FILES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE")


def run(*words, cwd, **environment):
    environment = {**os.environ, **environment}
    words = list(map(str, words))
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)


def sources(root):
    """All files of the packages and the public module, relative to `root`."""
    return {MODULE} | {
        path.relative_to(root).as_posix()
        for package in PACKAGES
        for path in (root / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the checkout, so that building leaves nothing in the real one."""
    root = tmp_path_factory.mktemp("checkout")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (MODULE, *SETUP_FILES):
        shutil.copy(ROOT / name, root)
    return root


@pytest.fixture(scope="module")
def built(checkout):
    """(wheel, sdist); the wheel is built from the sdist."""
    pytest.importorskip("build", reason="build is not installed")
    pytest.importorskip("setuptools", reason="setuptools is not installed")
    done = run(sys.executable, "-m", "build", "--no-isolation", checkout, cwd=checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (checkout / "dist").glob("*.whl")
    (sdist,) = (checkout / "dist").glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """Folder into which the wheel was installed, without its dependencies."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    done = run(*pip, "--disable-pip-version-check", "--target", folder, built[0], cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_wheel_holds_all_sources_and_data_and_nothing_else(checkout, built):
    with zipfile.ZipFile(built[0]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = sources(checkout)
    assert {f"pipeline/data/{name}.json" for name in BUILTIN_VOCABULARIES} <= expected
    assert any(name.startswith("evaluation/report/templates/") for name in expected)
    assert names == expected


def test_the_sdist_holds_all_sources_and_data(checkout, built):
    with tarfile.open(built[1]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert sources(checkout) | set(SETUP_FILES) <= names


def test_the_packages_work_outside_the_checkout(installed, tmp_path):
    code = (
        "import eoid, pipeline; print(eoid.__file__, pipeline.__file__, eoid.__version__,"
        f" *(eoid.load_vocabulary(name).num_interactions for name in {BUILTIN_VOCABULARIES!r}))"
    )
    done = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    public, package, version, *counts = done.stdout.split()
    assert Path(public) == installed / MODULE and Path(package).is_relative_to(installed)
    assert f"\nversion = {version}\n" in (ROOT / "setup.cfg").read_text()
    assert counts == ["600", "468", "14130", "50"]


def test_every_command_is_installed_and_helps(installed, tmp_path):
    scripts = list((installed / "bin").glob("eoid-*"))
    assert len(scripts) == 5
    for script in scripts:
        done = run(script, "--help", cwd=tmp_path, PYTHONPATH=str(installed))
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"Usage: {script.name} ")


def test_a_command_works_outside_the_checkout(installed, tmp_path):
    script = installed / "bin" / "eoid-data"
    words = [["toy", "w", "--train", "2", "--test", "1"], ["check", "w"]]
    for arguments in words:
        done = run(script, *arguments, cwd=tmp_path, PYTHONPATH=str(installed))
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "w" / "dataset.toml").is_file()
