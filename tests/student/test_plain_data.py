import argparse
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import InputError
from student.published import read_checkpoint


@pytest.mark.parametrize(
    "value",
    [
        None,
        argparse.Namespace(lr=1e-4, output_dir=Path("/runs/a"), device="cuda"),
        np.float64(0.29),
        np.float32(0.29),
        np.int64(89),
        np.bool_(True),
        Counter([60, 60]),
        torch.device("cpu"),
        torch.Size([2, 3]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_training_scripts_save_beside_tensors(tmp_path, value):
    torch.save({"model": {"a": torch.ones(2)}, "more": value}, tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth")["more"] == value


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_numbers_of_an_older_and_a_newer_numpy(tmp_path, module):
    file = tmp_path / "a.pth"
    torch.save({"best": np.float64(0.5)}, file, _use_new_zipfile_serialization=False)
    content = file.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    file.write_bytes(content.replace(b"numpy.core.multiarray", module))
    assert read_checkpoint(file) == {"best": 0.5}


class Code:
    def __reduce__(self):
        return (print, ("executed",))


def test_objects_that_may_run_code_are_named(tmp_path, capsys):
    torch.save({"model": {}, "args": Code()}, tmp_path / "a.pth")
    with pytest.raises(InputError) as caught:
        read_checkpoint(tmp_path / "a.pth")
    line = str(caught.value)
    assert line.endswith("a torch checkpoint, found an object of print, which may run code")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"text", b"PK\x03\x04", b"\x80\x02}q"])
def test_other_files_are_one_line(tmp_path, content):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.pth: expected a torch checkpoint, found ") as caught:
        read_checkpoint(tmp_path / "a.pth")
    line = str(caught.value)
    assert "\n" not in line and line.isprintable()
