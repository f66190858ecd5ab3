"""The tutorial and the notebook of the toy dataset run as a whole, with small numbers."""

import re
from pathlib import Path

import pytest
from commands import run_script

DOCS = Path(__file__).parents[1] / "docs"
NOTEBOOK = DOCS / "notebooks/toy.ipynb"
SMALL = """
train_images, test_images = 24, 8
epochs = 1
"""


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="the extra docs is not installed")
    nbclient = pytest.importorskip("nbclient", reason="the extra docs is not installed")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", ())]
    parameters.source = SMALL
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
    for name in ("distilled", "control"):
        assert (tmp_path / "runs" / name / "results.json").is_file()
    shown = [o.data for c in notebook.cells for o in c.get("outputs", ()) if "data" in o]
    assert sum("image/png" in data for data in shown) == 2


def test_the_notebook_has_outputs_of_a_run_without_errors():
    nbformat = pytest.importorskip("nbformat", reason="the extra docs is not installed")
    cells = [c for c in nbformat.read(NOTEBOOK, as_version=4).cells if c.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs and not [o for o in outputs if o.output_type == "error"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


@pytest.mark.slow
def test_the_commands_of_the_tutorial_run(tmp_path):
    text = (DOCS / "tutorials/toy.md").read_text().partition("## Step by step")[2]
    script = "\n".join(re.findall(r"^```\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    for numbers, small in (
        ("--train 600 --test 100", "--train 24 --test 8"),
        ("--preset toy", "--preset toy --epochs 1 --workers 0"),
    ):
        assert numbers in script
        script = script.replace(numbers, small)
    run_script(script, tmp_path)
    assert (tmp_path / "runs/distilled/report.html").is_file()
    assert len(list((tmp_path / "drawn").glob("*.jpg"))) == 8
