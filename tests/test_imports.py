"""Import contracts of pyproject.toml, and imports of third-party packages."""

import ast
import configparser
import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.utils.files import read_toml

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "evaluation", "teacher_cache", "student")
HEAVY = (
    "msgspec",
    "torch",
    "torchvision",
    "open_clip",
    "transformers",
    "timm",
    "h5py",
    "dask",
    "scipy",
    "matplotlib",
    "jinja2",
    "numpy",
    "PIL",
)
# Third-party packages, and the only paths that may import them.
ALLOWED_IMPORTERS = {
    "click": [
        *(f"{package}/cli.py" for package in PACKAGES),
        "evaluation/scoring_options.py",
        "pipeline/cluster/cli_options.py",
        "pipeline/utils/cli",
        "student/inference/cli.py",
        "teacher_cache/build_options.py",
        "teacher_cache/cli_caches.py",
    ],
    "open_clip": ["teacher_cache/teachers/", "teacher_cache/toy/"],
    "timm": ["student/models/timm_backbone.py"],
    "dask": ["pipeline/cluster/"],
    "distributed": ["pipeline/cluster/"],
    "h5py": ["teacher_cache/reader/", "teacher_cache/writer/"],
    "scipy": ["pipeline/annotations/hico.py", "student/losses/matcher.py"],
    "matplotlib": ["evaluation/", "teacher_cache/analysis/"],
    "jinja2": ["evaluation/"],
    "transformers": ["pipeline/utils/hugging_face.py", "teacher_cache/teachers/vlm.py"],
    "supervision": ["student/inference/results.py", "student/inference/tracking.py"],
    "fastapi": ["student/inference/serve.py"],
    "gradio": ["student/inference/page.py", "student/inference/serve.py"],
    "uvicorn": ["student/inference/serve.py"],
    "av": ["student/inference/video.py"],
    "trackers": ["student/inference/tracking.py"],
    "wandb": ["student/engine/loggers.py"],
    "tqdm": ["pipeline/utils/progress.py"],
}


def entry_points():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options.entry_points"]["console_scripts"].split("\n")
    return dict(tuple(map(str.strip, line.split("="))) for line in lines if line)


def test_contracts_are_kept():
    pytest.importorskip("importlinter", reason="import-linter is not installed")
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_the_contract_of_the_student_forbids_every_module_but_the_reader():
    contracts = read_toml(ROOT / "pyproject.toml")["tool"]["importlinter"]["contracts"]
    (contract,) = [c for c in contracts if c["name"].startswith("student imports no module")]
    modules = {path.stem for path in (ROOT / "teacher_cache").glob("*.py")} - {"__init__"}
    modules |= {path.parent.name for path in (ROOT / "teacher_cache").glob("*/__init__.py")}
    forbidden = {name.removeprefix("teacher_cache.") for name in contract["forbidden_modules"]}
    assert forbidden == modules - {"reader"}


def imported(path):
    """Top-level names that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0]


def test_third_party_packages_are_imported_only_where_allowed():
    wrong = [
        (file, package)
        for name in PACKAGES
        for path in (ROOT / name).rglob("*.py")
        for package in set(imported(path)) & ALLOWED_IMPORTERS.keys()
        if not (file := path.relative_to(ROOT).as_posix()).startswith(
            tuple(ALLOWED_IMPORTERS[package])
        )
    ]
    assert wrong == []


@pytest.mark.parametrize("command", entry_points())
def test_help_and_configuration_files_import_nothing_heavy(command):
    module, _, function = entry_points()[command].partition(":")
    code = f"""
import contextlib, importlib, io, json, sys
main = getattr(importlib.import_module({module!r}), {function!r})

def shown(*words):
    sys.argv = [{command!r}, *words]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main()
    return out.getvalue()

lines = shown("--help").partition("Commands:")[2].splitlines()
names = [line.split()[0] for line in lines if line.startswith("  ") and line[2] != " "]
for words in ([], *([name] for name in names)):
    assert shown(*words, "--help").startswith("Usage: "), words
if "config" in names:
    assert "# " in shown("config")
print(json.dumps([names, [name for name in {HEAVY!r} if name in sys.modules]]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names, heavy = json.loads(done.stdout)
    assert heavy == []
    if command == "eoid-data":
        assert names == ["check", "convert", "toy"]
