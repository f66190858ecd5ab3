"""Export to ONNX or torch.export: one file that runs without this package.

The graph contains normalisation, model and selection of the best interactions; the vocabulary and
the image sizes are stored as metadata. Operations that cannot be traced for images of any size are
replaced by equivalent ones first. Every written file is loaded and compared with the detector.
"""

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
# Minimum side of the input, so that feature maps have enough cells for queries from proposals.
MIN_SIDE = 64
# Older tracers fail on dynamic dimensions without an upper bound.
MAX_DIM = 2**16
# Maximum deviation of exported outputs, relative to the larger of 1 and the largest value, and the
# minimum fraction of rows within it: among nearly equal scores, other queries may be selected.
TOLERANCE = 1e-3
MIN_EQUAL_FRACTION = 0.9
DECODED_OUTPUTS = ("scores", "verbs", "labels", "human_boxes", "object_boxes")


@dataclass(frozen=True)
class ExportConfig:
    """Settings of `export_detector`.

    Attributes:
        model: the detector.
        export_format: `ONNX` or `TORCH_EXPORT`.
        file: the file to write.
        overwrite: replace an existing file.
    """

    model: ModelSpec
    export_format: str
    file: Path
    overwrite: bool


def export_detector(config: ExportConfig) -> None:
    """Exports a detector atomically, after a comparison of the exported file with the detector.

    Raises:
        InputError: the file exists, the detector cannot be opened, ONNX's packages are missing, or
            the installed versions fail to export the detector or export it wrongly.
    """
    refuse_existing(config.file, config.overwrite)
    if config.file.is_dir():
        raise InputError(f"{config.file}: expected a file name, found a folder")
    if config.export_format == ONNX:
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
            if config.export_format == ONNX
            else _torch_export_bytes(program, loaded)
        )
    with atomic_write(config.file) as temporary:
        temporary.write_bytes(content)
        with _export_errors(config):
            wrong = compare_with_model(loaded, temporary, config.export_format)
        if wrong is not None:
            raise InputError(
                f"{config.file}: expected the detector's outputs from {_exporter_versions(config)},"
                f" found {wrong}; other versions may export it correctly"
            )


@contextmanager
def _export_errors(config: ExportConfig) -> Iterator[None]:
    """Turns errors of the exporters into one line, and hides their warnings and logs.

    Raises:
        InputError: the body raised an error.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    # Exporters and runtimes raise errors of any type.
    except Exception as error:
        reason = next(filter(None, map(str.strip, str(error).splitlines())), "")
        raise InputError(
            f"{config.file}: {_exporter_versions(config)} cannot export this detector"
            f" ({type(error).__name__}: {reason[:200]}); other versions may be able to"
        ) from None
    finally:
        logging.disable(disabled)


def _exporter_versions(config: ExportConfig) -> str:
    """Names and versions of the packages that write the file."""
    packages = ("torch", *(ONNX_PACKAGES if config.export_format == ONNX else ()))
    return ", ".join(f"{name} {version(name)}" for name in packages)


@torch.no_grad()
def compare_with_model(loaded: InferenceModel, file: Path, export_format: str) -> str | None:
    """Describes how the outputs of an exported file differ from the model's; None if they agree.

    The inputs are noise images of sizes that were not traced, alone and in a batch with padding.
    """
    graph = DetectorGraph(loaded)
    run = _load_exported(file, export_format)
    multiple = graph.size_divisible
    generator = torch.Generator().manual_seed(0)
    height, width = (-(-side // multiple) * multiple for side in (MIN_SIDE + 33, MIN_SIDE + 9))
    batch = torch.rand(3, 3, height, width, generator=generator)
    sizes = torch.tensor([[height, width], [height - 20, width - 5], [height - 7, width]])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    for rows in (slice(1), slice(3)):
        found = run(batch[rows], sizes[rows])
        decoded = graph.decode({name: found[name] for name in found if name.startswith("pred_")})
        for row, (h, w) in enumerate(sizes[rows].tolist()):
            image = (batch[row, :, :h, :w] - mean) / std
            expected = loaded.model([image], padding_invariant=True)
            expected["scores"] = decoded["scores"][row : row + 1]
            # Verbs and boxes are not compared, since entries with equal scores may be in any order.
            for name in (name for name in found if name.startswith("pred_") or name == "scores"):
                deviation = _max_deviation(
                    expected[name][0], found[name][row], ordered=name == "scores"
                )
                if deviation is not None:
                    return f"{name} off by {deviation:.3g} for an image of {w} x {h} pixels"
    return None


def _load_exported(file: Path, export_format: str) -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
    """Loads an exported file as a function from images and sizes to outputs by name."""
    if export_format == ONNX:
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
    """The maximum deviation of outputs of one image; None where they agree within `TOLERANCE`.

    Args:
        expected, found: (K, ...) outputs.
        ordered: compare row by row; otherwise each row with its nearest one, since queries chosen
            from proposals of nearly equal score may be in any order.
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
    """Metadata of an exported file beside the vocabulary: split, input sizes and format."""
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
    """Traces the detector for any number of images of any size.

    Returns:
        The program, and the names of its outputs.
    """
    graph = DetectorGraph(loaded)
    multiple = graph.size_divisible
    batch = torch.export.Dim("batch", min=1, max=MAX_DIM)
    height, width = (
        torch.export.Dim(name, min=MIN_SIDE // multiple, max=MAX_DIM)
        for name in ("height", "width")
    )
    sides = (height, width) if multiple == 1 else (multiple * height, multiple * width)
    # Different sides, since the tracer may identify dimensions of equal size.
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
    # Stack traces contain paths of this machine.
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
    onnx_program = torch.onnx.export(
        program, dynamo=True, input_names=INPUT_NAMES, output_names=names, verbose=False
    )
    assert onnx_program is not None
    for node in onnx_program.model.graph:
        node.metadata_props.clear()
    onnx_program.model.metadata_props.update(_metadata_texts(loaded))
    proto = onnx_program.model_proto
    _name_dynamic_dims(proto.graph)
    return proto.SerializeToString()


def _name_dynamic_dims(graph: Any) -> None:
    """Renames the dynamic dimensions of inputs and outputs to batch, height and width."""
    # Shapes of intermediate values contain the old names. They are optional: tools infer them.
    del graph.value_info[:]
    dims = graph.input[0].type.tensor_type.shape.dim
    names = {dims[0].dim_param: "batch", dims[2].dim_param: "height", dims[3].dim_param: "width"}
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = names[dim.dim_param]


def _metadata_texts(loaded: InferenceModel) -> dict[str, str]:
    values = {"vocabulary": loaded.vocabulary.to_dict(), "about": export_metadata(loaded)}
    return {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}


class DetectorGraph(nn.Module):
    """Normalisation, detector and top-100 selection, without data-dependent control flow.

    Args:
        loaded: the detector, which is not changed.

    Attributes:
        size_divisible: number that the sides of the input have to be multiples of.
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
            images: (B, 3, H, W) float32 RGB from 0 to 1, padded at the right and at the bottom with
                any values.
            sizes: (B, 2) int64 height and width of each image without padding.

        Returns:
            The model's `pred_*` outputs, and the K highest-scoring interactions of every image in
            descending order of score: `scores` (B, K) float32, -1 where there are fewer than K;
            `verbs` and `labels` (B, K) int64 indices of verb and object, label -1 for a verb
            without object; `human_boxes` and `object_boxes` (B, K, 4) xyxy in [0, 1] of the image.
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
        """Selects the highest-scoring interactions of the `pred_*` outputs; see `forward`."""
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
    """`nn.MultiheadAttention` for (B, length, d) tensors.

    torch's transposes to (length, B, d) inside, which specialises the graph to more than one image.
    """

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
        """As `nn.MultiheadAttention` in eval mode; the returned weights are always None."""
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
    """`nn.MaxPool2d` as pooling with stride 1 followed by subsampling.

    torch before 2.8 cannot trace the pooling's stride for maps of any size when sides are odd.
    """

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        assert not pool.ceil_mode and pool.dilation == 1, "only the stem's pooling is supported"
        self.kernel_size, self.stride, self.padding = pool.kernel_size, pool.stride, pool.padding

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C, h / stride, w / stride)."""
        pooled = F.max_pool2d(features, self.kernel_size, 1, self.padding)
        return pooled[:, :, :: self.stride, :: self.stride]


def _with_exportable_modules(model: nn.Module) -> nn.Module:
    copy = deepcopy(model).cpu()
    replacements = {nn.MultiheadAttention: ExportableAttention, nn.MaxPool2d: ExportableMaxPool}
    for name, module in list(copy.named_modules()):
        if type(module) in replacements:
            parent, _, child = name.rpartition(".")
            setattr(copy.get_submodule(parent), child, replacements[type(module)](module))
    return copy


def resize_nearest(
    features: Tensor, size: Sequence[int] | None, factors: Sequence[float] | None = None
) -> Tensor:
    """Resizes (B, C, h, w) to (B, C, *size) as torch's mode "nearest", by integer indices.

    Args:
        features: maps to resize.
        size: the new height and width.
        factors: scale factors of the replaced operation, which have to be None.
    """
    assert size is not None and factors is None, "only resizing to a size is supported"
    rows, columns = (
        torch.arange(new, device=features.device) * old // new
        for new, old in zip(size, features.shape[-2:], strict=True)
    )
    return features[:, :, rows][:, :, :, columns]


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` of (..., n) inputs with (m, n) weights as one matrix product of two dimensions."""
    rows = inputs.reshape(-1, weight.shape[1]) @ weight.t()
    outputs = rows.reshape(*inputs.shape[:-1], weight.shape[0])
    return outputs if bias is None else outputs + bias


# Replacements of operations in the exported graph.
DECOMPOSITIONS: dict[torch._ops.OperatorBase, Callable[..., Tensor]] = {
    torch.ops.aten.upsample_nearest2d.vec: resize_nearest,
}
if torch.__version__ < "2.7":
    # The ONNX exporter of torch 2.6 fails on `linear` with a dynamic number of tokens.
    DECOMPOSITIONS[torch.ops.aten.linear.default] = linear
