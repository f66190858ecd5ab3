import argparse
import gzip
import io
import pickle
import zipfile
from collections import Counter
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.utils.errors import InputError
from pipeline.utils.weights import (
    check_finite,
    load_weights,
    read_checkpoint,
    weights_digest,
)

STATE = {"b.weight": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(3)}


class Evil:
    def __reduce__(self):
        return print, ("code from a file ran",)


def save_in_every_format(folder, name, state):
    save_file(state, folder / f"a{name}")
    torch.save({"model": state}, folder / f"b{name}")
    torch.save({"state_dict": state, "epoch": 3}, folder / f"c{name}")
    torch.save(state, folder / f"d{name}", _use_new_zipfile_serialization=False)
    return [folder / f"{letter}{name}" for letter in "abcd"]


@pytest.mark.parametrize("name", [".pth", ".safetensors", ".bin"])
@pytest.mark.parametrize("wrapper", ["", "module.", "model.", "_orig_mod.", "module.model."])
def test_all_file_formats_give_the_same_weights(tmp_path, name, wrapper):
    wrapped = {wrapper + key: value for key, value in STATE.items()}
    for file in save_in_every_format(tmp_path, name, wrapped):
        assert weights_digest(load_weights(file)) == weights_digest(STATE)


def test_prefixes_are_kept_if_names_would_collide(tmp_path):
    torch.save({"a": torch.ones(1), "model.a": torch.zeros(1)}, tmp_path / "w.pth")
    assert load_weights(tmp_path / "w.pth").keys() == {"a", "model.a"}


@pytest.mark.parametrize(
    "other",
    [
        {},
        {**STATE, "a": torch.tensor(4)},
        {**STATE, "a": torch.tensor(3, dtype=torch.int32)},
        {**STATE, "a": torch.tensor(3, dtype=torch.bfloat16)},
        {**STATE, "b.weight": STATE["b.weight"].reshape(3, 2)},
        {"b.weight": STATE["b.weight"], "c": STATE["a"]},
    ],
)
def test_different_weights_have_different_digests(other):
    assert weights_digest(other) != weights_digest(STATE)


def test_plain_values_of_training_scripts_are_read(tmp_path):
    values = [
        None,
        argparse.Namespace(lr=1e-4, output_dir=Path("/runs/a"), device="cuda"),
        SimpleNamespace(lr=1e-4),
        *(np.float64(0.29), np.float32(0.29), np.int64(89), np.uint16(8), np.bool_(True)),
        *(Counter([60, 60]), torch.device("cpu"), torch.Size([2, 3])),
    ]
    arrays = [np.linspace(0, 1, 6).reshape(2, 3), np.array(["ride", "hold"])]
    torch.save({"model": STATE, "values": values, "arrays": arrays}, tmp_path / "a.pth")
    found = read_checkpoint(tmp_path / "a.pth")
    assert found["values"] == values
    for one, other in zip(found["arrays"], arrays, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"PosixPath", b"WindowsPath"),
        (b"numpy._core.multiarray", b"numpy.core.multiarray"),
        (b"numpy.core.multiarray", b"numpy._core.multiarray"),
    ],
)
def test_values_of_other_systems_and_versions_are_read(tmp_path, old, new):
    file, content = tmp_path / "a.pth", {"out": Path("/runs/a"), "best": np.float64(0.5)}
    torch.save(content, file, _use_new_zipfile_serialization=False)
    file.write_bytes(file.read_bytes().replace(old, new))
    found = read_checkpoint(file)
    assert (found["out"].name, found["best"]) == ("a", 0.5)


def zipped(names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, b"1")
    return file.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:9f2c\nsize 167502836\n"


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        (b"", ["empty"]),
        (POINTER, ["Git LFS", "167502836 bytes", "git lfs pull"]),
        (b"\n<!DOCTYPE html><html>", ["web page"]),
        (gzip.compress(b"weights"), ["compressed"]),
        (b"\x89HDF\r\n\x1a\n", ["HDF5"]),
        (zipped(["a/w.npy"]), ["zip", "a/w.npy"]),
        (b'{"weight_map": {}}', ["JSON"]),
        (b"\x93NUMPY\x01\x00", ["NumPy"]),
        (zipped([]), ["zip", "empty"]),
        (b"PK\x03\x04", ["zip", "truncated after 4 bytes"]),
        (b"\0" * 20, ["begins with"]),
        (b"\x08" + 7 * b"\0", ["begins with"]),
        (b"\x80\x02}q", ["truncated after 4 bytes"]),
        (pickle.dumps({"a": np.ones(2)}), ["pickle", "torch.save"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "file",
)
def test_other_kinds_of_files_are_named(tmp_path, content, facts):
    file = tmp_path / "w.safetensors"
    file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_weights(file)
    line = str(caught.value)
    assert line.startswith(f"{file}: ") and line.isprintable()
    assert all(fact in line for fact in facts), line


@pytest.mark.parametrize("form", ["zip", "old", "safetensors"])
def test_truncated_checkpoint_is_refused(tmp_path, form):
    file = tmp_path / "w.pth"
    if form == "safetensors":
        save_file(STATE, file)
    else:
        torch.save(STATE, file, _use_new_zipfile_serialization=form == "zip")
    content = file.read_bytes()
    # Within a name, the old form looks like one with an object of that name.
    for size in (12, len(content) - 3) if form == "old" else (len(content) // 3, len(content) - 3):
        file.write_bytes(content[:size])
        with pytest.raises(InputError, match=rf"w\.pth: .* truncated after {size} bytes"):
            load_weights(file)


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        ([1], ["tensors by name", "list"]),
        (argparse.Namespace(a=1), ["tensors by name", "argparse.Namespace"]),
        ({"a": 3}, ["a: ", "int", "torch.as_tensor"]),
        ({"model": {"a": np.float64(3)}}, ["a: ", "numpy.float64", "torch.as_tensor"]),
        ({"model": {"a": np.ones(3)}}, ["a: ", "numpy.ndarray", "torch.as_tensor"]),
    ],
)
def test_content_without_state_dict_is_refused(tmp_path, content, facts):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InputError) as caught:
        load_weights(tmp_path / "w.pth")
    assert all(fact in str(caught.value) for fact in facts)


@pytest.mark.parametrize("name", ["absent.pth", "absent.safetensors", "."])
def test_missing_file_and_folder_are_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"no such file|a folder"):
        load_weights(tmp_path / name)


@pytest.mark.parametrize("zipped_form", [True, False])
@pytest.mark.parametrize(
    ("value", "name"),
    [(Evil(), "print"), (nn.Linear(1, 1), "Linear"), (Fraction(1, 2), "fractions.Fraction")],
    ids=["function", "module", "fraction"],
)
def test_objects_that_could_run_code_are_refused(tmp_path, capsys, value, name, zipped_form):
    file = tmp_path / "w.pth"
    torch.save({"model": STATE, "a": value}, file, _use_new_zipfile_serialization=zipped_form)
    with pytest.raises(InputError) as caught:
        load_weights(file)
    line = str(caught.value)
    assert name in line and "torch.save(model.state_dict()" in line and "\n" not in line
    assert "code from a file ran" not in capsys.readouterr().out


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nonfinite_weights_are_refused(value):
    check_finite(STATE, "w.pth")
    bad = {**STATE, "b.weight": torch.tensor([[1.0, value, value]])}
    with pytest.raises(InputError, match=r"w\.pth: b\.weight: .* 2 of 3"):
        check_finite(bad, "w.pth")


@pytest.fixture
def archive(tmp_path):
    """Path and state dict of a TorchScript module with the kinds of values in CLIP's archives."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2).half()
            self.table = nn.Parameter(torch.arange(12.0).reshape(3, 4).t())
            self.register_buffer("count", torch.tensor(7))
            self.sizes = [1, 2, 3]
            self.note = "eval"

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * len(self.sizes)

    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([Block(), Block()])
            self.empty = nn.Parameter(torch.zeros(0, 4))
            self.shared = self.blocks[0].table

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.blocks[0](x)

    model = Root()
    torch.jit.save(torch.jit.script(model), tmp_path / "model.pt")
    return tmp_path / "model.pt", model.state_dict()


pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")


def test_torchscript_tensors_are_the_state_dict(archive):
    path, state = archive
    found = load_weights(path)
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def rewritten(path, change):
    """Replaces every entry of an archive by `change(name, content)`; None removes it."""
    with zipfile.ZipFile(path) as old:
        entries = [(name, change(name, old.read(name))) for name in old.namelist()]
    with zipfile.ZipFile(path, "w") as new:
        for name, content in entries:
            if content is not None:
                new.writestr(name, content)


def test_no_code_of_a_torchscript_archive_runs(archive, capsys):
    path, _ = archive
    evil = pickle.dumps(Evil(), protocol=2)
    rewritten(path, lambda name, content: evil if name.endswith("/data.pkl") else content)
    with pytest.raises(InputError, match=r"model\.pt: .*print"):
        load_weights(path)
    assert "code from a file ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [
        lambda name, content: None if name.endswith("data/1") else content,
        lambda name, content: content[:-8] if name.endswith("data/1") else content,
        lambda name, content: content[:60] if name.endswith("/data.pkl") else content,
        lambda name, content: None if name.endswith("/data.pkl") else content,
        lambda name, content: pickle.dumps(3) if name.endswith("/data.pkl") else content,
    ],
)
def test_damaged_torchscript_archive_is_refused(archive, change):
    path, _ = archive
    rewritten(path, change)
    content = path.read_bytes()
    for share in (1, 0.99, 0.5):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(InputError, match=r"model\.pt: expected") as caught:
            load_weights(path)
        assert "\n" not in str(caught.value)
