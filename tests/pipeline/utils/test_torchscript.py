import pickle
import zipfile

import pytest
import torch
from torch import nn

from pipeline.utils.errors import InputError
from pipeline.utils.weights import is_torchscript, load_weights, read_torchscript


@pytest.fixture
def archive(tmp_path):
    """A compiled module with everything that CLIP's archives hold, and its state dict."""

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


def test_its_tensors_are_the_state_dict(archive):
    path, state = archive
    assert is_torchscript(path)
    for found in (read_torchscript(path), load_weights(path)):
        assert found.keys() == state.keys()
        for name, tensor in state.items():
            assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_other_files_are_none(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(b"")
    assert not is_torchscript(tmp_path / "a.pt") and not is_torchscript(tmp_path / "b.pt")


def rewritten(path, change):
    """The archive with `change(name, content)` for every entry; None leaves one out."""
    with zipfile.ZipFile(path) as old:
        entries = [(name, change(name, old.read(name))) for name in old.namelist()]
    with zipfile.ZipFile(path, "w") as new:
        for name, content in entries:
            if content is not None:
                new.writestr(name, content)


class Evil:
    def __reduce__(self):
        return print, ("code from a file ran",)


def test_no_code_runs_from_it(archive, capsys):
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
def test_a_damaged_archive(archive, change):
    path, _ = archive
    rewritten(path, change)
    with pytest.raises(InputError, match=r"model\.pt: expected") as caught:
        load_weights(path)
    assert "\n" not in str(caught.value)


def test_a_truncated_archive(archive):
    path, _ = archive
    content = path.read_bytes()
    for share in (0.1, 0.5, 0.99):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(InputError, match=r"model\.pt: expected"):
            load_weights(path)
