"""Writes a detector as one file that runs without this package, its vocabulary inside."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import InputError
from pipeline.files import refuse_existing, replacing
from student.data import MEAN, STD
from student.export_graph import DetectorGraph
from student.geometry import LONGEST_SIDE, SHORT_SIDES
from student.plain_operations import PLAIN
from student.ready import ModelSource, ReadyModel, ready_model

FORMAT = "eoid-export-1"
ONNX, TORCH_EXPORT = "onnx", "torch-export"
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
INPUTS = ["images", "sizes"]
# The array is at least this large, so that queries from pairs find cells enough.
LEAST_SIDE = 64
# Free sides without any bound make older tracers stumble over the largest number there is.
MOST = 2**16
# What is written may differ from the model by this, of the largest answer and 1; among answers that
# are nearly equal another may be among the best.
TOLERANCE = 1e-3
LEAST_EQUAL = 0.9


@dataclass(frozen=True)
class ExportConfig:
    """What to export.

    Attributes:
        model: the detector.
        form: `ONNX` or `TORCH_EXPORT`.
        file: where it goes.
        overwrite: replace the file.
    """

    model: ModelSource
    form: str
    file: Path
    overwrite: bool


def export_detector(config: ExportConfig) -> None:
    """Writes the file, whole or not at all; it is read again and compared with the detector.

    Raises:
        InputError: the file is there, nothing to open, ONNX's packages are missing, or these
            versions of torch and ONNX's packages cannot export the detector, or do it wrongly.
    """
    refuse_existing(config.file, config.overwrite)
    if config.file.is_dir():
        raise InputError(f"{config.file}: expected a file's name, found a folder")
    if config.form == ONNX:
        missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            raise InputError(
                f"--export onnx: needs {', '.join(missing)}; pip install 'eoid[export]'"
            )
    opened = ready_model(config.model)
    with _exporting(config):
        program, names = trace(opened)
        content = _onnx(program, names, opened) if config.form == ONNX else _saved(program, opened)
    with replacing(config.file) as temporary:
        temporary.write_bytes(content)
        with _exporting(config):
            wrong = difference(opened, temporary, config.form)
        if wrong is not None:
            raise InputError(
                f"{config.file}: expected the detector's answers from {_exporters(config)},"
                f" found {wrong}; other versions may do it right"
            )


@contextmanager
def _exporting(config: ExportConfig) -> Iterator[None]:
    """Failures of the exporters in one line; they warn of their own insides, too.

    Raises:
        InputError: the body raised something.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    # Exporters and runtimes fail in every way a program can.
    except Exception as error:
        why = next(filter(None, map(str.strip, str(error).splitlines())), "")
        raise InputError(
            f"{config.file}: {_exporters(config)} cannot export this detector"
            f" ({type(error).__name__}: {why[:200]}); other versions may do it"
        ) from None
    finally:
        logging.disable(disabled)


def _exporters(config: ExportConfig) -> str:
    """The versions of what makes the file."""
    packages = ("torch", *(ONNX_PACKAGES if config.form == ONNX else ()))
    return ", ".join(f"{name} {version(name)}" for name in packages)


@torch.no_grad()
def difference(opened: ReadyModel, file: Path, form: str) -> str | None:
    """How the detector in a file differs from the model; None where it does not.

    Compared are answers about pictures of noise, of sizes that were not traced, one of them alone
    and one beside a larger one.
    """
    graph = DetectorGraph(opened)
    run = _runner(file, form)
    multiple = graph.side_multiple
    random = torch.Generator().manual_seed(0)
    height, width = (-(-side // multiple) * multiple for side in (LEAST_SIDE + 33, LEAST_SIDE + 9))
    batch = torch.rand(3, 3, height, width, generator=random)
    sizes = torch.tensor([[height, width], [height - 20, width - 5], [height - 7, width]])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    for rows in (slice(1), slice(3)):
        found = run(batch[rows], sizes[rows])
        decoded = graph.decode({name: found[name] for name in found if name.startswith("pred_")})
        for row, (h, w) in enumerate(sizes[rows].tolist()):
            image = (batch[row, :, :h, :w] - mean) / std
            expected = opened.model([image], alone=True)
            expected["scores"] = decoded["scores"][row : row + 1]
            # Which verb and boxes go with a score is not compared: equal scores may change places.
            for name in (name for name in found if name.startswith("pred_") or name == "scores"):
                off = _off(expected[name][0], found[name][row], ordered=name == "scores")
                if off is not None:
                    return f"{name} off by {off:.3g} for a picture of {w} x {h} pixels"
    return None


def _runner(file: Path, form: str) -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
    """Answers by name of the detector in a file, called with images and sizes."""
    if form == ONNX:
        import onnxruntime

        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]

        def run(images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
            values = session.run(None, {"images": images.numpy(), "sizes": sizes.numpy()})
            return dict(zip(names, map(torch.from_numpy, values), strict=True))

        return run
    with open(file, "rb") as content:
        return torch.export.load(content).module()


def _off(expected: Tensor, found: Tensor, ordered: bool) -> float | None:
    """How far answers are from the expected ones; None where they are equal.

    Args:
        expected, found: (K, ...) of one image.
        ordered: row for row; else the nearest row counts, since queries that are nearly equally
            good may change places.
    """
    expected, found = (
        values.flatten(1) if values.dim() > 1 else values[:, None] for values in (expected, found)
    )
    expected, found = expected.double(), found.double()
    if ordered:
        distances = (expected - found).abs().amax(1)
    else:
        distances = torch.cdist(expected, found, p=torch.inf).amin(1)
    equal = distances <= TOLERANCE * max(1.0, float(expected.abs().max()))
    return None if float(equal.double().mean()) >= LEAST_EQUAL else float(distances.max())


def about(opened: ReadyModel) -> dict[str, Any]:
    """What a user of the file has to know beside the vocabulary."""
    published = opened.augmentation == "published"
    return {
        "format": FORMAT,
        "model": opened.file.name,
        "split": opened.split.name if opened.split else None,
        "unseen": sorted(opened.unseen),
        "short_side": SHORT_SIDES[-1] if published else None,
        "longest_side": LONGEST_SIDE,
        "side_multiple": opened.model.backbone.side_multiple,
        "least_side": LEAST_SIDE,
    }


def trace(opened: ReadyModel) -> tuple[torch.export.ExportedProgram, list[str]]:
    """The detector as a graph with any number of images of any size, and its outputs' names."""
    graph = DetectorGraph(opened)
    multiple = graph.side_multiple
    batch = torch.export.Dim("batch", min=1, max=MOST)
    height, width = (
        torch.export.Dim(name, min=LEAST_SIDE // multiple, max=MOST) for name in ("height", "width")
    )
    sides = (height, width) if multiple == 1 else (multiple * height, multiple * width)
    # Sides that differ, so that none is taken for another.
    example = torch.zeros(2, 3, 2 * LEAST_SIDE, 3 * LEAST_SIDE)
    sizes = torch.tensor([[2 * LEAST_SIDE, 3 * LEAST_SIDE]] * 2)
    with torch.no_grad():
        names = list(graph(example, sizes))
        program = torch.export.export(
            graph,
            (example, sizes),
            dynamic_shapes=({0: batch, 2: sides[0], 3: sides[1]}, {0: batch}),
            strict=False,
        )
        program = program.run_decompositions(dict(PLAIN))
    # What was traced where is of no use to others and names folders of this machine.
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program, names


def _saved(program: torch.export.ExportedProgram, opened: ReadyModel) -> bytes:
    buffer = io.BytesIO()
    extra = {f"{name}.json": text for name, text in _texts(opened).items()}
    torch.export.save(program, buffer, extra_files=extra)
    return buffer.getvalue()


def _onnx(program: torch.export.ExportedProgram, names: list[str], opened: ReadyModel) -> bytes:
    made = torch.onnx.export(
        program, dynamo=True, input_names=INPUTS, output_names=names, verbose=False
    )
    assert made is not None
    for node in made.model.graph:
        node.metadata_props.clear()
    made.model.metadata_props.update(_texts(opened))
    proto = made.model_proto
    _name_sides(proto.graph)
    return proto.SerializeToString()


def _name_sides(graph: Any) -> None:
    """Calls the free sides of inputs and outputs by their names instead of the tracer's."""
    # Shapes in between are told by the tracer's names; whoever needs them infers them again.
    del graph.value_info[:]
    free = graph.input[0].type.tensor_type.shape.dim
    names = {free[0].dim_param: "batch", free[2].dim_param: "height", free[3].dim_param: "width"}
    for value in (*graph.input, *graph.output):
        for side in value.type.tensor_type.shape.dim:
            if side.dim_param:
                side.dim_param = names[side.dim_param]


def _texts(opened: ReadyModel) -> dict[str, str]:
    values = {"vocabulary": opened.vocabulary.to_dict(), "about": about(opened)}
    return {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}
