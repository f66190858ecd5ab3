"""Writes a detector as one file that runs without this package, its vocabulary inside."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert

from pipeline.utils.errors import InputError
from pipeline.utils.files import atomic_write, refuse_existing
from student.data.transforms import IMAGENET_MEAN, IMAGENET_STD, MAX_SIZE, SHORT_SIDES
from student.inference.model import InferenceModel, ModelSpec, load_inference_model
from student.inference.postprocess import NUM_DETECTIONS, top_entries
from student.models.padding import feature_padding_mask

FORMAT_VERSION = "eoid-export-1"
ONNX, TORCH_EXPORT = "onnx", "torch-export"
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
INPUT_NAMES = ["images", "sizes"]
# The array is at least this large, so that queries from proposals find cells enough.
MIN_SIDE = 64
# Free sides without any bound make older tracers stumble over the largest number there is.
MAX_DIM = 2**16
# What is written may differ from the model by this, of the largest answer and 1; among answers that
# are nearly equal another may be among the best.
TOLERANCE = 1e-3
MIN_EQUAL_FRACTION = 0.9


@dataclass(frozen=True)
class ExportConfig:
    """What to export.

    Attributes:
        model: the detector.
        format: `ONNX` or `TORCH_EXPORT`.
        file: where it goes.
        overwrite: replace the file.
    """

    model: ModelSpec
    format: str
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
    if config.format == ONNX:
        missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            raise InputError(
                f"--export onnx: needs {', '.join(missing)}; pip install 'eoid[export]'"
            )
    loaded = load_inference_model(config.model)
    with _export_errors(config):
        program, names = trace_detector(loaded)
        content = (
            _onnx_bytes(program, names, loaded)
            if config.format == ONNX
            else _torch_export_bytes(program, loaded)
        )
    with atomic_write(config.file) as temporary:
        temporary.write_bytes(content)
        with _export_errors(config):
            wrong = compare_with_model(loaded, temporary, config.format)
        if wrong is not None:
            raise InputError(
                f"{config.file}: expected the detector's answers from {_exporter_versions(config)},"
                f" found {wrong}; other versions may do it right"
            )


@contextmanager
def _export_errors(config: ExportConfig) -> Iterator[None]:
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
            f"{config.file}: {_exporter_versions(config)} cannot export this detector"
            f" ({type(error).__name__}: {why[:200]}); other versions may do it"
        ) from None
    finally:
        logging.disable(disabled)


def _exporter_versions(config: ExportConfig) -> str:
    """The versions of what makes the file."""
    packages = ("torch", *(ONNX_PACKAGES if config.format == ONNX else ()))
    return ", ".join(f"{name} {version(name)}" for name in packages)


@torch.no_grad()
def compare_with_model(loaded: InferenceModel, file: Path, format: str) -> str | None:
    """How the detector in a file differs from the model; None where it does not.

    Compared are answers about pictures of noise, of sizes that were not traced, one of them alone
    and one beside a larger one.
    """
    graph = DetectorGraph(loaded)
    run = _load_exported(file, format)
    multiple = graph.size_divisible
    random = torch.Generator().manual_seed(0)
    height, width = (-(-side // multiple) * multiple for side in (MIN_SIDE + 33, MIN_SIDE + 9))
    batch = torch.rand(3, 3, height, width, generator=random)
    sizes = torch.tensor([[height, width], [height - 20, width - 5], [height - 7, width]])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    for rows in (slice(1), slice(3)):
        found = run(batch[rows], sizes[rows])
        decoded = graph.decode({name: found[name] for name in found if name.startswith("pred_")})
        for row, (h, w) in enumerate(sizes[rows].tolist()):
            image = (batch[row, :, :h, :w] - mean) / std
            expected = loaded.model([image], padding_invariant=True)
            expected["scores"] = decoded["scores"][row : row + 1]
            # Which verb and boxes go with a score is not compared: equal scores may change places.
            for name in (name for name in found if name.startswith("pred_") or name == "scores"):
                off = _max_deviation(expected[name][0], found[name][row], ordered=name == "scores")
                if off is not None:
                    return f"{name} off by {off:.3g} for a picture of {w} x {h} pixels"
    return None


def _load_exported(file: Path, format: str) -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
    """Answers by name of the detector in a file, called with images and sizes."""
    if format == ONNX:
        import onnxruntime

        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]

        def run(images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
            values = session.run(None, {"images": images.numpy(), "sizes": sizes.numpy()})
            return dict(zip(names, map(torch.from_numpy, values), strict=True))

        return run
    with open(file, "rb") as content:
        return torch.export.load(content).module()


def _max_deviation(expected: Tensor, found: Tensor, ordered: bool) -> float | None:
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
    return None if float(equal.double().mean()) >= MIN_EQUAL_FRACTION else float(distances.max())


def export_metadata(loaded: InferenceModel) -> dict[str, Any]:
    """What a user of the file has to know beside the vocabulary."""
    published = loaded.augmentation == "published"
    return {
        "format": FORMAT_VERSION,
        "model": loaded.file.name,
        "split": loaded.split.name if loaded.split else None,
        "unseen": sorted(loaded.unseen),
        "short_side": SHORT_SIDES[-1] if published else None,
        "longest_side": MAX_SIZE,
        "side_multiple": loaded.model.backbone.size_divisible,
        "least_side": MIN_SIDE,
    }


def trace_detector(loaded: InferenceModel) -> tuple[torch.export.ExportedProgram, list[str]]:
    """The detector as a graph with any number of images of any size, and its outputs' names."""
    graph = DetectorGraph(loaded)
    multiple = graph.size_divisible
    batch = torch.export.Dim("batch", min=1, max=MAX_DIM)
    height, width = (
        torch.export.Dim(name, min=MIN_SIDE // multiple, max=MAX_DIM)
        for name in ("height", "width")
    )
    sides = (height, width) if multiple == 1 else (multiple * height, multiple * width)
    # Sides that differ, so that none is taken for another.
    example = torch.zeros(2, 3, 2 * MIN_SIDE, 3 * MIN_SIDE)
    sizes = torch.tensor([[2 * MIN_SIDE, 3 * MIN_SIDE]] * 2)
    with torch.no_grad():
        names = list(graph(example, sizes))
        program = torch.export.export(
            graph,
            (example, sizes),
            dynamic_shapes=({0: batch, 2: sides[0], 3: sides[1]}, {0: batch}),
            strict=False,
        )
        program = program.run_decompositions(dict(DECOMPOSITIONS))
    # What was traced where is of no use to others and names folders of this machine.
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program, names


def _torch_export_bytes(program: torch.export.ExportedProgram, loaded: InferenceModel) -> bytes:
    buffer = io.BytesIO()
    extra = {f"{name}.json": text for name, text in _metadata_texts(loaded).items()}
    torch.export.save(program, buffer, extra_files=extra)
    return buffer.getvalue()


def _onnx_bytes(
    program: torch.export.ExportedProgram, names: list[str], loaded: InferenceModel
) -> bytes:
    made = torch.onnx.export(
        program, dynamo=True, input_names=INPUT_NAMES, output_names=names, verbose=False
    )
    assert made is not None
    for node in made.model.graph:
        node.metadata_props.clear()
    made.model.metadata_props.update(_metadata_texts(loaded))
    proto = made.model_proto
    _name_dynamic_dims(proto.graph)
    return proto.SerializeToString()


def _name_dynamic_dims(graph: Any) -> None:
    """Calls the free sides of inputs and outputs by their names instead of the tracer's."""
    # Shapes in between are told by the tracer's names; whoever needs them infers them again.
    del graph.value_info[:]
    free = graph.input[0].type.tensor_type.shape.dim
    names = {free[0].dim_param: "batch", free[2].dim_param: "height", free[3].dim_param: "width"}
    for value in (*graph.input, *graph.output):
        for side in value.type.tensor_type.shape.dim:
            if side.dim_param:
                side.dim_param = names[side.dim_param]


def _metadata_texts(loaded: InferenceModel) -> dict[str, str]:
    values = {"vocabulary": loaded.vocabulary.to_dict(), "about": export_metadata(loaded)}
    return {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}


DECODED_OUTPUTS = ("scores", "verbs", "labels", "human_boxes", "object_boxes")


class DetectorGraph(nn.Module):
    """Normalisation, detector and choice of the best interactions, without a choice by data.

    Args:
        loaded: the detector; it stays as it is.

    Attributes:
        size_divisible: what the sides of its input have to be multiples of.
    """

    mean: Tensor
    std: Tensor
    valid: Tensor

    def __init__(self, loaded: InferenceModel) -> None:
        super().__init__()
        self.model = _with_exportable_modules(loaded.model)
        self.size_divisible = cast(int, loaded.model.backbone.size_divisible)
        self.allow_no_object = bool(loaded.vocabulary.roles)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1))
        self.register_buffer("valid", torch.from_numpy(loaded.vocabulary.valid.T.copy()))
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        """Detects pairs.

        Args:
            images: (B, 3, H, W) float32 RGB from 0 to 1; smaller images lie top left, whatever
                is beside and below them.
            sizes: (B, 2) int64 height and width of each image.

        Returns:
            The model's `pred_*`; and for the K best interactions of every image, scores falling:
            `scores` (B, K) float32, -1 on rows beyond the last one; `verbs` and `labels` (B, K)
            int64 indices of verb and object, -1 for a verb without object; `human_boxes`,
            `object_boxes` (B, K, 4) xyxy in [0, 1] of the image.
        """
        height, width = images.shape[-2:]
        torch._check(height % self.size_divisible == 0)
        torch._check(width % self.size_divisible == 0)
        padding = feature_padding_mask(sizes, 1, (height, width))
        pixels = (images - self.mean) / self.std * ~padding[:, None]
        outputs = self.model((pixels, padding), padding_invariant=True)
        predicted = {name: outputs[name] for name in outputs if name.startswith("pred_")}
        return {**predicted, **self.decode(predicted)}

    def decode(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The best interactions of the model's `pred_*`, see `forward`."""
        scores, entries, labels = top_entries(
            outputs, self.valid, self.allow_no_object, NUM_DETECTIONS
        )
        num_verbs = self.valid.shape[1]
        choices = entries // num_verbs
        queries = choices // 2 if self.allow_no_object else choices
        labels = labels.gather(1, queries)
        if self.allow_no_object:
            labels = torch.where(choices - 2 * queries == 1, -1, labels)
        corner = queries[..., None].expand(-1, -1, 4)

        def boxes(name: str) -> Tensor:
            return box_convert(outputs[name], "cxcywh", "xyxy").clamp(0, 1).gather(1, corner)

        decoded = (
            scores,
            entries - choices * num_verbs,
            labels,
            boxes("pred_human_boxes"),
            boxes("pred_object_boxes"),
        )
        return dict(zip(DECODED_OUTPUTS, decoded, strict=True))


class ExportableAttention(nn.Module):
    """`nn.MultiheadAttention` for (B, length, d) without its detour over (length, B, d), which
    would tie a graph to batches of more than one image."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        assert weight is not None and bias is not None
        self.num_heads, self.out = attention.num_heads, attention.out_proj
        self.weights = nn.ParameterList(part.detach().clone() for part in weight.chunk(3))
        self.biases = nn.ParameterList(part.detach().clone() for part in bias.chunk(3))

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, None]:
        """As `nn.MultiheadAttention` in eval mode; never gives weights."""
        queries, keys, values = (
            F.linear(tokens, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for tokens, weight, bias in zip(
                (query, key, value), self.weights, self.biases, strict=True
            )
        )
        mask = None if key_padding_mask is None else ~key_padding_mask[:, None, None]
        joined = F.scaled_dot_product_attention(queries, keys, values, mask)
        return self.out(joined.transpose(1, 2).flatten(2)), None


class ExportableMaxPool(nn.Module):
    """`nn.MaxPool2d` as one of stride 1, of which every n-th cell is taken: with odd sides torch
    before 2.8 cannot trace a stride for maps of any size."""

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        assert not pool.ceil_mode and pool.dilation == 1, "the stem's pooling, no other"
        self.kernel_size, self.stride, self.padding = pool.kernel_size, pool.stride, pool.padding

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C, h / stride, w / stride)."""
        every = F.max_pool2d(features, self.kernel_size, 1, self.padding)
        return every[:, :, :: self.stride, :: self.stride]


def _with_exportable_modules(model: nn.Module) -> nn.Module:
    copy = deepcopy(model).cpu()
    plain = {nn.MultiheadAttention: ExportableAttention, nn.MaxPool2d: ExportableMaxPool}
    for name, module in list(copy.named_modules()):
        if type(module) in plain:
            parent, _, child = name.rpartition(".")
            setattr(copy.get_submodule(parent), child, plain[type(module)](module))
    return copy


def resize_nearest(
    features: Tensor, size: Sequence[int] | None, factors: Sequence[float] | None = None
) -> Tensor:
    """(B, C, h, w) to (B, C, *size), each cell the nearest one before it, as torch's "nearest".

    Args:
        size: the new height and width.
        factors: other callers' way to say it; None here.
    """
    assert size is not None and factors is None, "resizing to a size, no other"
    rows, columns = (
        torch.arange(new, device=features.device) * old // new
        for new, old in zip(size, features.shape[-2:], strict=True)
    )
    return features[:, :, rows][:, :, :, columns]


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., n) to (..., m) by weights (m, n), as a product of matrices."""
    rows = inputs.reshape(-1, weight.shape[1]) @ weight.t()
    outputs = rows.reshape(*inputs.shape[:-1], weight.shape[0])
    return outputs if bias is None else outputs + bias


# What takes an operation's place when a graph is made for others.
DECOMPOSITIONS: dict[torch._ops.OperatorBase, Callable[..., Tensor]] = {
    torch.ops.aten.upsample_nearest2d.vec: resize_nearest,
}
if torch.__version__ < "2.7":
    # Its ONNX exporter fails at tokens of any number.
    DECOMPOSITIONS[torch.ops.aten.linear.default] = linear
