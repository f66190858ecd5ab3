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
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert

from pipeline.utils.errors import InputError
from pipeline.utils.files import atomic_write, refuse_existing
from pipeline.utils.logging import get_logger
from student.data.transforms import MAX_SIZE, SHORT_SIDES
from student.inference.detector import Detector
from student.inference.postprocess import NUM_DETECTIONS, top_entries
from student.models.backbone import pixel_statistics
from student.models.detector import HOIDetector
from student.models.padding import feature_padding_mask
from student.models.timm_backbone import TimmBackbone

logger = get_logger(__name__)

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


def export_detector(
    detector: Detector, export_format: str, file: Path, overwrite: bool = False
) -> None:
    """Exports a detector atomically, after a comparison of the exported file with the detector.

    Args:
        detector: a detector on the CPU.
        export_format: `ONNX` or `TORCH_EXPORT`.
        file: the file to write.
        overwrite: replace an existing file.

    Raises:
        InputError: the file exists, ONNX's packages are missing, the detector's backbone cannot be
            traced, or the installed versions fail to export the detector or export it wrongly.
    """
    backbone = detector.predictor.model.backbone
    if isinstance(backbone, TimmBackbone) and backbone.untraceable:
        raise InputError(
            "--export: expected a backbone with a graph for images of any size, found"
            f" {detector.predictor.model.config.backbone}, whose {backbone.untraceable} would be"
            " those of one size"
        )
    refuse_existing(file, overwrite)
    if file.is_dir():
        raise InputError(f"{file}: expected a file name, found a folder")
    packages = ("torch", *(ONNX_PACKAGES if export_format == ONNX else ()))
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"--export onnx: needs {', '.join(missing)}; pip install '.[export]'")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    logger.info(f"{file}: tracing the detector for images of any size; this takes a while")
    with _export_errors(file, versions):
        program, names = trace_detector(detector)
    if export_format == ONNX:
        logger.info(f"{file}: converting the traced detector to ONNX")
    with _export_errors(file, versions):
        content = (
            _onnx_bytes(program, names, detector)
            if export_format == ONNX
            else _torch_export_bytes(program, detector)
        )
    with atomic_write(file) as temporary:
        temporary.write_bytes(content)
        logger.info(f"{file}: comparing the written file with the detector")
        with _export_errors(file, versions):
            wrong = compare_with_detector(detector, temporary, export_format)
        if wrong is not None:
            raise InputError(
                f"{file}: expected the detector's outputs from {versions}, found {wrong}; other"
                " versions may export it correctly"
            )


@contextmanager
def _export_errors(file: Path, versions: str) -> Iterator[None]:
    """Turns all errors into an `InputError` of one line, and hides warnings and logs."""
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
            f"{file}: {versions} cannot export this detector"
            f" ({type(error).__name__}: {reason[:200]}); other versions may be able to"
        ) from None
    finally:
        logging.disable(disabled)


@torch.no_grad()
def compare_with_detector(detector: Detector, file: Path, export_format: str) -> str | None:
    """Describes how the outputs of an exported file differ from the detector's; None if they agree.

    The inputs are noise images of sizes that were not traced, alone and in a batch with padding.
    Every row of an output is compared with the nearest one, since queries and entries of nearly
    equal scores may be in any order. The decoded indices and boxes follow from the compared values.
    """
    graph = DetectorGraph(detector)
    run = _load_exported(file, export_format)
    generator = torch.Generator().manual_seed(0)
    multiple = graph.size_divisible
    height, width = (-(-side // multiple) * multiple for side in (MIN_SIDE + 33, MIN_SIDE + 9))
    batch = torch.rand(3, 3, height, width, generator=generator)
    cut = [[0, 0], [20, 5], [7, 0]]
    if not graph.mixed_sizes:
        # All images need the same multiples.
        cut = [[min(pixels, multiple - 1) for pixels in row] for row in cut]
    sizes = torch.tensor([height, width]) - torch.tensor(cut)
    for rows in (slice(1), slice(3)):
        found = run(batch[rows], sizes[rows])
        compared = [name for name in found if name.startswith("pred_") or name == "scores"]
        for row, (h, w) in enumerate(sizes[rows].tolist()):
            # The detector itself, on the image without its padding.
            pixels = (batch[row : row + 1, :, :h, :w] - graph.mean) / graph.std
            expected = detector.predictor.model(list(pixels), padding_invariant=True)
            expected |= graph.decode(expected)
            for name in compared:
                ours, theirs = (
                    value.double().reshape(-1, 1 if name == "scores" else value.shape[-1])
                    for value in (expected[name][0], found[name][row])
                )
                distances = torch.cdist(ours, theirs, p=torch.inf).amin(1)
                equal = distances <= TOLERANCE * max(1.0, float(ours.abs().max()))
                if float(equal.double().mean()) < MIN_EQUAL_FRACTION:
                    deviation = float(distances.max())
                    return f"{name} off by {deviation:.3g} for an image of {w} x {h} pixels"
    return None


def _load_exported(file: Path, export_format: str) -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
    """Loads an exported file as a function from images and sizes to outputs by name."""
    if export_format == TORCH_EXPORT:
        with open(file, "rb") as content:
            return torch.export.load(content).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        values = session.run(None, {"images": images.numpy(), "sizes": sizes.numpy()})
        return dict(zip(names, map(torch.from_numpy, values), strict=True))

    return run


def least_side(multiple: int) -> int:
    """The minimum side of the input, for sides that are multiples of a number."""
    return -(-MIN_SIDE // multiple) * multiple


def trace_detector(detector: Detector) -> tuple[torch.export.ExportedProgram, list[str]]:
    """Traces the detector for any number of images of any size; also gives the outputs' names."""
    graph = DetectorGraph(detector)
    multiple, least = graph.size_divisible, least_side(graph.size_divisible) // graph.size_divisible
    batch = torch.export.Dim("batch", min=1, max=MAX_DIM)
    height, width = (torch.export.Dim(name, min=least, max=MAX_DIM) for name in ("height", "width"))
    sides = (height, width) if multiple == 1 else (multiple * height, multiple * width)
    # Different sides, since the tracer may identify dimensions of equal size.
    example = torch.zeros(2, 3, 2 * least * multiple, 3 * least * multiple)
    sizes = torch.tensor([example.shape[-2:]] * 2)
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


def _torch_export_bytes(program: torch.export.ExportedProgram, detector: Detector) -> bytes:
    buffer = io.BytesIO()
    extra = {f"{name}.json": text for name, text in _metadata_texts(detector).items()}
    torch.export.save(program, buffer, extra_files=extra)
    return buffer.getvalue()


def _onnx_bytes(
    program: torch.export.ExportedProgram, names: list[str], detector: Detector
) -> bytes:
    onnx_program = torch.onnx.export(
        program, dynamo=True, input_names=INPUT_NAMES, output_names=names, verbose=False
    )
    assert onnx_program is not None
    for node in onnx_program.model.graph:
        node.metadata_props.clear()
    onnx_program.model.metadata_props.update(_metadata_texts(detector))
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


def _metadata_texts(detector: Detector) -> dict[str, str]:
    """The vocabulary, and split, input sizes and format of an exported file, as JSON."""
    predictor = detector.predictor
    published = predictor.train.augmentation == "published"
    multiple = cast(int, predictor.model.backbone.size_divisible)
    about = {
        "format": FORMAT_VERSION,
        "model": detector.file.name,
        "split": detector.split.name if detector.split else None,
        "unseen": sorted(detector.unseen),
        "short_side": SHORT_SIDES[-1] if published else None,
        "longest_side": MAX_SIZE,
        "side_multiple": multiple,
        "least_side": least_side(multiple),
        "mixed_sizes": accepts_mixed_sizes(predictor.model),
    }
    values = {"vocabulary": detector.vocabulary.to_dict(), "about": about}
    return {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}


class DetectorGraph(nn.Module):
    """Normalisation, detector and top-100 selection, without data-dependent control flow.

    The sides of the input have to be multiples of `size_divisible`. The detector is not changed.
    """

    mean: Tensor
    std: Tensor
    valid: Tensor

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        model, vocabulary = detector.predictor.model, detector.vocabulary
        self.model = _exportable_copy(model)
        self.size_divisible = cast(int, model.backbone.size_divisible)
        # Other graphs need images that are equally large when rounded up to `size_divisible`.
        self.mixed_sizes = accepts_mixed_sizes(model)
        self.allow_no_object = bool(vocabulary.roles)
        for name, values in pixel_statistics(model.backbone)._asdict().items():
            self.register_buffer(name, torch.as_tensor(values).cpu().view(3, 1, 1))
        self.register_buffer("valid", torch.from_numpy(vocabulary.valid.T.copy()))
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

        return {
            "scores": scores,
            "verbs": entries - choices * num_verbs,
            "labels": labels,
            "human_boxes": boxes("pred_human_boxes"),
            "object_boxes": boxes("pred_object_boxes"),
        }


class ExportableMaxPool(nn.Module):
    """`nn.MaxPool2d` as pooling with stride 1 followed by subsampling.

    torch before 2.8 cannot trace the pooling's stride for maps of any size when sides are odd.
    """

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        assert not pool.ceil_mode and pool.dilation == 1, "only the stem's pooling is supported"
        self.kernel_size, self.stride, self.padding = pool.kernel_size, pool.stride, pool.padding

    def forward(self, features: Tensor) -> Tensor:
        pooled = F.max_pool2d(features, self.kernel_size, 1, self.padding)
        return pooled[:, :, :: self.stride, :: self.stride]


def accepts_mixed_sizes(model: HOIDetector) -> bool:
    """Whether an exported detector accepts batches of images of different sizes."""
    return not isinstance(model.backbone, TimmBackbone)


def _exportable_copy(model: HOIDetector) -> HOIDetector:
    copy = deepcopy(model).cpu().to(memory_format=torch.contiguous_format)
    if isinstance(copy.backbone, TimmBackbone):
        # A graph has no loop over images of different sizes.
        copy.backbone.crops_images = False
    for name, module in list(copy.named_modules()):
        if isinstance(module, nn.MaxPool2d):
            copy.set_submodule(name, ExportableMaxPool(module))
    return copy


def resize_nearest(
    features: Tensor, size: Sequence[int] | None, factors: Sequence[float] | None = None
) -> Tensor:
    """Resizes (B, C, h, w) to (B, C, *size) as torch's mode "nearest", by integer indices.

    `factors`, scale factors of the replaced operation, have to be None.
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
