"""Files beside the packages agree with them: CONTRIBUTING.md, CITATION.cff, .github."""

import configparser
import os
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "teacher_cache", "student", "evaluation")
# In CONTRIBUTING.md: names that many folders have, and files that commands and users write.
NO_FILE = {"__init__.py", "conftest.py", "dataset.toml", "demo/report.html"}
PATH = re.compile(r"\.?[\w-]+(/[\w.-]*)+|\.?[\w-]+\.(py|md|cff|cfg|toml|yaml|yml|json)")
TEXTS = ("CONTRIBUTING.md", "README.md", ".github/pull_request_template.md", ".ci/run")


def code_spans(file):
    """The texts in single backticks of a Markdown file; its code blocks are left out."""
    text = re.sub(r"^```.*?^```", "", (ROOT / file).read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`]+)`", text)


def paths_in(file):
    """Those of its code spans that are paths."""
    return sorted({span for span in code_spans(file) if PATH.fullmatch(span)} - NO_FILE)


def test_paths_in_contributing_exist():
    paths = paths_in("CONTRIBUTING.md")
    assert {"eoid.py", "student/losses/", ".ci/run", "setup.cfg"} <= set(paths)
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_contributing_lists_every_folder_of_the_packages():
    folders = {
        f"{file.parent.relative_to(ROOT).as_posix()}/"
        for package in PACKAGES
        for file in (ROOT / package).rglob("__init__.py")
    }
    rows = re.findall(r"^\| `([\w/]+/)` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert set(rows) == folders | {"benchmarks/"}


@pytest.mark.parametrize("file", TEXTS)
def test_make_targets_exist(file):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)", (ROOT / file).read_text(), re.M))
    names = {name for pair in named for name in pair if name}
    assert names and names <= targets


def test_the_citation_describes_this_version():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == setup["metadata"]["version"]
    assert citation["license"] == setup["metadata"]["license"]
    # Changes after a release stand above it, under "Unreleased".
    released = re.findall(r"^## (\d.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == f"{citation['version']} ({citation['date-released']})"
    (paper,) = citation["references"]
    assert paper["url"] in (ROOT / "README.md").read_text()


def test_the_workflow_runs_what_ci_runs():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    commands = [
        step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step
    ]
    assert {".ci/run", "make test"} <= set(commands)
    assert os.access(ROOT / ".ci/run", os.X_OK)
    versions = workflow["jobs"]["test"]["strategy"]["matrix"]["python-version"]
    # 3.1 is what YAML makes of an unquoted 3.10.
    assert all(isinstance(version, str) for version in versions)
