import pickle

import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import InputError
from pipeline.weights import load_weights, mismatch, weights_digest

STATE = {"b.weight": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(3)}


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"model": s}, lambda s: {"state_dict": s, "epoch": 3}]
)
def test_every_file_form_gives_the_same_weights(tmp_path, wrap):
    save_file(STATE, tmp_path / "w.safetensors")
    torch.save(wrap(STATE), tmp_path / "w.pth")
    digests = {weights_digest(load_weights(tmp_path / name)) for name in ("w.safetensors", "w.pth")}
    assert digests == {weights_digest(STATE)}


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"a": STATE["a"]},
        {**STATE, "a": torch.tensor(4)},
        {**STATE, "a": torch.tensor(3, dtype=torch.int32)},
        {**STATE, "b.weight": STATE["b.weight"].reshape(3, 2)},
        {"b.weight": STATE["b.weight"], "c": STATE["a"]},
    ],
)
def test_other_weights_have_another_digest(other):
    assert weights_digest(other) != weights_digest(STATE)


def test_the_digest_knows_half_precision():
    assert weights_digest({"a": torch.ones(3, dtype=torch.bfloat16)})


@pytest.mark.parametrize(
    "name, content",
    [
        ("w.safetensors", b""),
        ("w.safetensors", b"nonsense"),
        ("w.pth", b""),
        ("w.pth", b"nonsense"),
        ("w.pth", pickle.dumps([1, 2], protocol=2)),
    ],
)
def test_files_that_are_no_weights(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_weights(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_missing_file_and_other_data(tmp_path):
    with pytest.raises(InputError, match="no such weights file"):
        load_weights(tmp_path / "absent.pth")
    torch.save({"a": 3}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="expected tensors by name, found dict"):
        load_weights(tmp_path / "w.pth")


class Evil:
    def __reduce__(self):
        return print, ("code from a file ran",)


def test_no_code_runs_from_a_file(tmp_path, capsys):
    torch.save({"a": Evil()}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="plain tensors"):
        load_weights(tmp_path / "w.pth")
    assert "code from a file ran" not in capsys.readouterr().out


def test_mismatch_is_one_short_line():
    error = mismatch("w.pth", "A", RuntimeError("Error in loading:\n\tMissing" + " key" * 999))
    assert "\n" not in str(error) and len(str(error)) < 300
    assert "expected weights of A" in str(error)
