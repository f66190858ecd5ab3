"""Writes a detector as one file that runs without this package, its vocabulary inside."""

from __future__ import annotations

import importlib.util
import io
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import InputError
from pipeline.files import refuse_existing, replacing
from student.export_graph import DetectorGraph
from student.geometry import LONGEST_SIDE, SHORT_SIDES
from student.plain_operations import PLAIN
from student.ready import ModelSource, ReadyModel, ready_model

FORMAT = "eoid-export-1"
ONNX, TORCH_EXPORT = "onnx", "torch-export"
ONNX_PACKAGES = ("onnx", "onnxscript")
INPUTS = ["images", "sizes"]
# The array is at least this large, so that queries from pairs find cells enough.
LEAST_SIDE = 64
# Free sides without any bound make older tracers stumble over the largest number there is.
MOST = 2**16


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
    """Writes the file, whole or not at all.

    Raises:
        InputError: the file is there, nothing to open, or ONNX's packages are missing.
    """
    refuse_existing(config.file, config.overwrite)
    if config.file.is_dir():
        raise InputError(f"{config.file}: expected a file's name, found a folder")
    if config.form == ONNX:
        missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            raise InputError(
                f"--export onnx: needs {' and '.join(missing)}; pip install 'eoid[export]'"
            )
    opened = ready_model(config.model)
    with warnings.catch_warnings():
        # The exporters warn of their own insides.
        warnings.simplefilter("ignore")
        program, names = trace(opened)
        content = _onnx(program, names, opened) if config.form == ONNX else _saved(program, opened)
    with replacing(config.file) as temporary:
        temporary.write_bytes(content)


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
