"""The notebook of the documentation runs from top to bottom, with small numbers."""

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs/notebooks/toy.ipynb"
SMALL = """
train_images, test_images = 24, 8
teacher_images, teacher_steps, detector_epochs = 32, 2, 1
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
