"""Initialising a student from pretrained weights (`--pretrained`, `--backbone-weights`).

Accepted are runs and checkpoints of this project, published EoID, CDN and DETR checkpoints,
torchvision's ResNets and detectors, and the name "toy" for the toy dataset's detector; which of
them a file is follows from its tensors' names. Every tensor of the file, and every parameter of the
student, appears in the returned `LoadReport`. (The published conversion script renames DETR's
decoder to a key that EoID does not have, so that its interaction decoder starts from random values
without a message.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from pipeline.toy import DETECTOR, TOY
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.weights import (
    WRAPPER_PREFIXES,
    check_finite,
    check_state_dict,
    read_checkpoint,
    shorten_message,
    strip_prefixes,
    strip_wrapper_prefixes,
)
from pipeline.vocabulary import Vocabulary, find_names, load_vocabulary
from student.config import ModelConfig
from student.models.backbone import identify_resnet
from student.models.detector import HOIDetector
from student.models.text_head import TEXT_BUFFERS
from student.models.timm_backbone import TIMM_PREFIX, create_timm_model, rename_timm_weights
from student.weights.checkpoint_file import (
    checkpoint_path,
    has_checkpoint,
    is_student_checkpoint,
    parse_checkpoint,
)
from student.weights.published import checkpoint_argument, join_names, rename_published_key

# Prefix of every key in DETR's panoptic model.
PANOPTIC_PREFIX = "detr."
# EoID's and CDN's parts without a counterpart in DETR, and the DETR part that initialises each of
# them in a file that does not contain the part itself.
FALLBACK_PREFIXES = (
    ("transformer.interaction_decoder.", "transformer.decoder."),
    ("sub_bbox_embed.", "bbox_embed."),
    ("obj_bbox_embed.", "bbox_embed."),
    ("obj_class_embed.", "class_embed."),
)
COCO_IDS = 91
# Parameters with one row per query or class. `OBJECT_AND_NONE_ROWS` end with a row for "no pair".
QUERY_ROWS = ("query_source.embedding.",)
VERB_ROWS = ("verb_head.weight", "verb_head.bias")
OBJECT_ROWS = ("query_source.label.", "query_source.head.object_logits.")
OBJECT_AND_NONE_ROWS = ("object_head.weight", "object_head.bias")
TEXT_PARAMS = tuple(
    f"{head}.{name}"
    for head in ("verb_head", "object_head")
    for name in ("projection.", "log_scale", "margin", "no_pair.")
)
BOX_HEADS = ("human_box_head.", "object_box_head.")
# Parameters that read the backbone's feature maps, and so are of no use with another backbone.
MAP_READERS = (
    *("input_projection.", "finer_projections."),
    *("query_source.head.", "query_source.reduce."),
)
# State that no parameter depends on: other files do not have it.
BATCH_COUNTER = "num_batches_tracked"
PIXEL_STATISTICS = ("backbone.mean", "backbone.std")
# Value of `--backbone-weights` for the weights of the library that the backbone is from.
DEFAULT = "default"
LOAD_REPORT = "pretrained.json"


@dataclass(frozen=True, eq=False)
class PretrainedFile:
    """Tensors of a pretrained file and the parameters that they can initialise.

    Attributes:
        path: the file.
        kind: description of the file, for the log.
        entries: all tensors by their keys in the file.
        key_map: key in the file by key in `HOIDetector`.
        sizes: fields of `ModelConfig` that the student has to share.
        queries: kind of the model's queries, see `ModelConfig`.
        text_model: CLIP of the text heads, see `ModelConfig`; "" for linear ones.
        objects, verbs: class names in the order of the rows, "" for a row without a name; None
            where the names are unknown.
    """

    path: Path
    kind: str
    entries: dict[str, Tensor]
    key_map: dict[str, str]
    sizes: dict[str, Any]
    queries: str = "learned"
    text_model: str = ""
    objects: tuple[str, ...] | None = None
    verbs: tuple[str, ...] | None = None


def pretrained_path(path: Path) -> Path:
    """The file at a path: that of a run's checkpoint, and of the toy detector for "toy", unless the
    working directory has a file or run of that name."""
    is_detector = path == Path(TOY) and not has_checkpoint(path)
    return DETECTOR if is_detector else checkpoint_path(path)


def read_pretrained(path: Path) -> PretrainedFile:
    """Reads a file or run folder with pretrained weights; the module's docstring lists what is
    accepted.

    Raises:
        InputError: the file is missing, damaged, or none of these.
    """
    file = pretrained_path(path)
    return _parse_pretrained(read_checkpoint(file), file)


def _parse_pretrained(content: Any, file: Path) -> PretrainedFile:
    """The pretrained weights in the content that `read_checkpoint` returned for a file."""
    if is_student_checkpoint(content):
        return _student_checkpoint(content, file)
    entries = check_state_dict(content, file)
    arguments = content.get("args") if isinstance(content, dict) else None
    bare = {strip_prefixes(name, (*WRAPPER_PREFIXES, PANOPTIC_PREFIX)): name for name in entries}
    if "transformer.decoder.norm.weight" in bare:
        return _detr_checkpoint(file, entries, bare, arguments)
    return _backbone_file(file, entries, bare)


def _student_checkpoint(content: dict[str, Any], file: Path) -> PretrainedFile:
    checkpoint = parse_checkpoint(content, file)
    model, vocabulary = checkpoint.recipe.model, checkpoint.vocabulary
    names = ("backbone", "hidden_dim", "feedforward_dim", "num_heads", "pre_norm")
    return PretrainedFile(
        path=file,
        kind="a student checkpoint",
        entries=checkpoint.weights,
        key_map={name: name for name in checkpoint.weights},
        sizes={name: getattr(model, name) for name in names},
        queries=model.queries,
        text_model=model.text_model,
        objects=vocabulary.objects,
        verbs=vocabulary.verbs,
    )


def _detr_checkpoint(
    file: Path, entries: dict[str, Tensor], bare: dict[str, str], arguments: Any
) -> PretrainedFile:
    key_map: dict[str, str] = {}
    for theirs, name in bare.items():
        if (ours := rename_published_key(theirs)) is not None:
            key_map[ours] = name
    for part, fallback in FALLBACK_PREFIXES:
        if not any(theirs.startswith(part) for theirs in bare):
            for theirs, name in bare.items():
                ours = rename_published_key(part + theirs.removeprefix(fallback))
                if theirs.startswith(fallback) and ours is not None:
                    key_map[ours] = name
    heads = checkpoint_argument(arguments, "nheads")
    sizes = {
        "backbone": identify_resnet([name.removeprefix("backbone.0.body.") for name in bare]),
        "hidden_dim": _num_rows(entries, bare, "input_proj.weight"),
        "feedforward_dim": _num_rows(entries, bare, "transformer.decoder.layers.0.linear1.weight"),
        "num_heads": heads if isinstance(heads, int) else None,
        "pre_norm": "transformer.encoder.norm.weight" in bare,
    }
    published = "verb_class_embed.weight" in bare
    return PretrainedFile(
        path=file,
        kind="an EoID or CDN checkpoint" if published else "a DETR checkpoint",
        entries=entries,
        key_map=key_map,
        sizes={name: value for name, value in sizes.items() if value is not None},
        objects=_object_names(entries, bare),
        verbs=_verb_names(_num_rows(entries, bare, "verb_class_embed.weight")),
    )


def _backbone_file(file: Path, entries: dict[str, Tensor], bare: dict[str, str]) -> PretrainedFile:
    is_detector = any(name.startswith("backbone.body.") for name in bare)
    body = "backbone.body." if is_detector else ""
    names = [name.removeprefix(body) for name in bare if name.startswith(body)]
    backbone = "toy" if "stem.1.0.weight" in names else identify_resnet(names)
    if backbone is None:
        raise InputError(
            f"{file}: expected a run, a checkpoint of this project, EoID, CDN or DETR, or a"
            f" torchvision ResNet or detector, found {len(entries)} tensors"
            f" ({join_names(list(entries)) or 'none'})"
        )
    # `HOIDetector` keeps a ResNet in `backbone.body`, as torchvision's detectors do, and the toy
    # backbone directly in `backbone`.
    prefix = "backbone." if backbone == "toy" else "backbone.body."
    return PretrainedFile(
        path=file,
        kind=f"a {backbone} {'detector' if is_detector else 'classifier'}",
        entries=entries,
        key_map={prefix + name: bare[body + name] for name in names},
        sizes={"backbone": backbone},
    )


def _num_rows(entries: dict[str, Tensor], bare: dict[str, str], name: str) -> int | None:
    return len(entries[bare[name]]) if name in bare else None


def _object_names(entries: dict[str, Tensor], bare: dict[str, str]) -> tuple[str, ...] | None:
    """Class names of the object head's rows before the last one, "no object".

    EoID and CDN number COCO's 80 objects without gaps, and V-COCO's models have one more class for
    verbs without object. DETR numbers its rows by COCO's 91 category ids.
    """
    coco = load_vocabulary("hico-det")
    by_id = dict(zip(coco.category_ids, coco.objects, strict=True))
    rows = _num_rows(entries, bare, "obj_class_embed.weight")
    if rows is not None:
        known = {len(coco.objects): coco.objects, len(coco.objects) + 1: (*coco.objects, "")}
        return known.get(rows - 1)
    rows = _num_rows(entries, bare, "class_embed.weight")
    if rows == COCO_IDS + 1:
        return tuple(by_id.get(category, "") for category in range(COCO_IDS))
    # A DETR with other classes, whose names are unknown even where the count is the student's.
    return None if rows is None else ("",) * (rows - 1)


def _verb_names(rows: int | None) -> tuple[str, ...] | None:
    known = {
        vocabulary.num_verbs: vocabulary.verbs
        for vocabulary in (load_vocabulary("hico-det"), load_vocabulary("vcoco"))
    }
    return None if rows is None else known.get(rows)


def load_pretrained(
    model: HOIDetector, path: Path, vocabulary: Vocabulary, with_backbone: bool = True
) -> LoadReport:
    """Initialises a student with the matching weights of a file.

    Layers are matched by number, rows of classes by the class's name, and rows of queries by
    position.

    Args:
        model: changed in place; unchanged when an error is raised.
        path: see `read_pretrained`.
        vocabulary: the student's vocabulary.
        with_backbone: load the backbone too. Otherwise the file's may be another one.

    Returns:
        Which tensors were used, and which parameters keep their random initialisation.

    Raises:
        InputError: the file has none of the accepted forms, its model has other sizes, or a value
            is not finite.
    """
    file = read_pretrained(path)
    left_out: tuple[str, ...] = ()
    if not with_backbone:
        is_same = file.sizes.get("backbone") == model.config.backbone
        left_out = ("backbone.",) if is_same else ("backbone.", *MAP_READERS)
        sizes = {name: value for name, value in file.sizes.items() if name != "backbone"}
        file = replace(file, sizes=sizes)
    return _load_file(model, file, vocabulary, left_out)


def load_backbone(model: HOIDetector, weights: str, vocabulary: Vocabulary) -> LoadReport:
    """Initialises a student's backbone.

    Args:
        model: changed in place; unchanged when an error is raised.
        weights: a file with the weights of the backbone, or "default" for those of timm and of
            torchvision, which are downloaded, and of the toy dataset's detector.
        vocabulary: the student's vocabulary.

    Raises:
        InputError: the file has no weights of the backbone, or there are none to download.
    """
    file = _backbone_weights(weights, model)
    key_map = {name: key for name, key in file.key_map.items() if name.startswith("backbone.")}
    file = replace(file, key_map=key_map, sizes={"backbone": file.sizes.get("backbone")})
    return _load_file(model, file, vocabulary)


def _backbone_weights(weights: str, model: HOIDetector) -> PretrainedFile:
    name = model.config.backbone
    is_timm = name.startswith(TIMM_PREFIX)
    if weights != DEFAULT or name == TOY:
        path = DETECTOR if weights == DEFAULT else pretrained_path(Path(weights))
        content = read_checkpoint(path)
        if not is_timm or is_student_checkpoint(content):
            return _parse_pretrained(content, path)
        state = strip_wrapper_prefixes(check_state_dict(content, path))
    else:
        path, state = Path(name), _download_backbone(name)
        if not is_timm:
            return _parse_pretrained(state, path)
    entries = rename_timm_weights(cast(nn.Module, model.backbone.body), state, path)
    return PretrainedFile(
        path=path,
        kind=f"weights of {name}",
        entries=entries,
        key_map={f"backbone.body.{key}": key for key in entries},
        sizes={"backbone": name},
    )


def _download_backbone(name: str) -> dict[str, Tensor]:
    """The weights that timm or torchvision publishes for a backbone, from the network or from the
    cache of earlier downloads."""
    try:
        if name.startswith(TIMM_PREFIX):
            return create_timm_model(name, pretrained=True).state_dict()
        # Those that DETR started from; torchvision's later ones come from a longer training.
        weights = get_model_weights(name)["IMAGENET1K_V1"]
        return weights.get_state_dict(check_hash=True, weights_only=True, map_location="cpu")
    # timm, the hub's client and torch raise errors of any type.
    except Exception as error:
        reason = shorten_message(error)
        raise InputError(
            f"--backbone-weights default: expected weights of {name} to download, found none"
            f" ({reason}); a file can be given instead"
        ) from None


def _load_file(
    model: HOIDetector,
    file: PretrainedFile,
    vocabulary: Vocabulary,
    left_out: tuple[str, ...] = (),
) -> LoadReport:
    """Initialises a student with a file's weights, except parameters whose names begin with
    `left_out`; see `load_pretrained`."""
    # The sentence embeddings are buffers that come from the student's cache, never from the file.
    params = {
        name: value
        for name, value in model.state_dict().items()
        if name not in TEXT_BUFFERS and not name.startswith(left_out)
    }
    _check_sizes(file, model.config)
    used: dict[str, list[str]] = {}
    reasons: dict[str, str] = {}
    rows: dict[str, _RowMap] = {}
    for name, key in file.key_map.items():
        reason = "it belongs to another backbone" if name.startswith(left_out) else None
        if reason := reason or _skip_reason(name, file, params, model.config):
            reasons.setdefault(key, reason)
            continue
        used.setdefault(key, []).append(name)
        theirs, ours = file.entries[key], params[name]
        row_map = _map_rows(name, len(ours) if ours.dim() else 0, theirs, file, vocabulary)
        if row_map is not None:
            rows[name] = row_map
        skipped = 0 if row_map is None else 1
        if theirs.shape[skipped:] != ours.shape[skipped:] or theirs.dim() != ours.dim():
            raise bad_field(file.path, key, f"shape {list(ours.shape)}", list(theirs.shape))
    loaded = {name: file.entries[key] for key, names in used.items() for name in names}
    missing = tuple(
        name
        for name in params
        if name not in loaded and not name.endswith(BATCH_COUNTER) and name not in PIXEL_STATISTICS
    )
    if lacking := [name for name in missing if name.startswith("backbone.")]:
        raise InputError(f"{file.path}: expected a whole backbone, found no {lacking[0]}")
    check_finite({key: file.entries[key] for key in used}, file.path)
    partial: dict[str, str] = {}
    for name, value in loaded.items():
        if name not in rows:
            params[name].copy_(value)
        elif share := _copy_rows(value, params[name], *rows[name]):
            partial[name.rpartition(".")[0]] = share
    unused = {
        key: reasons.get(key, "the student has no such part")
        for key in file.entries
        if key not in used
    }
    return LoadReport(file.path, file.kind, used, partial, unused, missing)


# Rows of a parameter with one row per query or class: the file's row for each, -1 for none, and the
# names of the classes.
_RowMap = tuple[np.ndarray, tuple[str, ...]]


def _map_rows(
    name: str, count: int, theirs: Tensor, file: PretrainedFile, vocabulary: Vocabulary
) -> _RowMap | None:
    """The row map of a parameter with `count` rows; None where rows are no queries or classes."""
    objects, verbs = vocabulary.objects, vocabulary.verbs
    num_rows = len(theirs) if theirs.dim() else 0
    if name.startswith(QUERY_ROWS):
        order = np.arange(count)
        return np.where(order < num_rows, order, -1), ()
    if name.startswith(VERB_ROWS):
        return _match_rows(verbs, file.verbs, num_rows), verbs
    if name.startswith(OBJECT_ROWS):
        return _match_rows(objects, file.objects, num_rows), objects
    if name.startswith(OBJECT_AND_NONE_ROWS):
        order = _match_rows(objects, file.objects, num_rows - 1)
        return np.append(order, num_rows - 1), objects
    return None


def _copy_rows(theirs: Tensor, ours: Tensor, order: np.ndarray, names: tuple[str, ...]) -> str:
    """Copies the matched rows to `ours`; describes the match unless it is complete, else ""."""
    rows = torch.from_numpy(order)
    found = rows >= 0
    ours[found] = theirs[rows[found]].to(ours.dtype)
    without = [name for name, row in zip(names, order, strict=False) if row < 0]
    if not found.all():
        missing = f", none for {join_names(without)}" if without else ""
        return f"{int(found.sum())} of {len(ours)} rows found among {len(theirs)}{missing}"
    return f"{len(ours)} of {len(theirs)} rows" if len(theirs) > len(ours) else ""


def _match_rows(ours: tuple[str, ...], theirs: tuple[str, ...] | None, count: int) -> np.ndarray:
    """Row of each of our classes among theirs; without names, equally many are the same ones."""
    if theirs is None or len(theirs) != count:
        return np.arange(len(ours)) if count == len(ours) else np.full(len(ours), -1)
    return np.array(find_names(ours, theirs))


def _skip_reason(
    name: str, file: PretrainedFile, params: dict[str, Tensor], config: ModelConfig
) -> str | None:
    """Why the file's tensor for a parameter of this name is not loaded; None if it is."""
    # Box heads predict boxes with learned queries, and offsets from reference boxes otherwise.
    if name.startswith(BOX_HEADS) and file.queries != config.queries:
        return f"trained for boxes of {file.queries} queries"
    if name in TEXT_BUFFERS and getattr(config, name.partition(".")[0]) == "text":
        return "sentence embeddings come from the cache"
    # A text head projects into the embedding space of one CLIP and is of no use with another.
    if name in params:
        other = name.startswith(TEXT_PARAMS) and file.text_model != config.text_model
        return "trained with another CLIP's text embeddings" if other else None
    if name.endswith(BATCH_COUNTER):
        return "frozen batch norm has no batch counter"
    return "the student has fewer layers" if ".layers." in name else "the student has no such part"


def _check_sizes(file: PretrainedFile, config: ModelConfig) -> None:
    wrong = {name: value for name, value in file.sizes.items() if getattr(config, name) != value}
    if wrong:
        expected = ", ".join(f"{name} {getattr(config, name)}" for name in wrong)
        found = ", ".join(f"{name} {value}" for name, value in wrong.items())
        raise InputError(f"{file.path}: expected a model of {expected}, found {found}")


@dataclass(frozen=True)
class LoadReport:
    """Result of `load_pretrained`; every tensor of the file is either used or unused.

    Attributes:
        path: the file.
        kind: description of the file.
        used: initialised parameters, by key in the file.
        partial: how many rows were matched, by module, where the match is not complete.
        unused: the reason, by key in the file.
        missing: parameters that keep their random initialisation.
    """

    path: Path
    kind: str
    used: dict[str, list[str]]
    partial: dict[str, str]
    unused: dict[str, str]
    missing: tuple[str, ...]

    def lines(self) -> list[str]:
        """Lines for the log, with counts per module instead of tensors."""
        total = len(self.used) + len(self.unused)
        summary = f"{self.path.name}, {self.kind}: {len(self.used)} of {total} tensors used"
        lines = [f"pretrained weights: {summary}"]
        loaded = [name for names in self.used.values() for name in names]
        lines.append(f"  loaded: {count_parts(loaded, 1)}")
        lines += [f"  {part}: {share}" for part, share in self.partial.items()]
        for reason in dict.fromkeys(self.unused.values()):
            unused = [name for name, each in self.unused.items() if each == reason]
            lines.append(f"  unused, {reason}: {count_parts(unused, 2)}")
        if self.missing:
            lines.append(f"  randomly initialised: {count_parts(self.missing, 1)}")
        return lines

    def has(self, part: str) -> bool:
        """Whether the file initialised parameters of this part of the detector."""
        return any(name.startswith(f"{part}.") for names in self.used.values() for name in names)

    def to_dict(self) -> dict[str, Any]:
        """The content of the report file."""
        return {
            "file": str(self.path),
            "kind": self.kind,
            "used": self.used,
            "partly": self.partial,
            "unused": self.unused,
            "random": list(self.missing),
        }


def count_parts(names: Iterable[str], depth: int) -> str:
    """Modules with the number of their tensors: "backbone 265, encoder 72"."""
    parts = Counter(_part_name(name, depth) for name in names)
    return ", ".join(f"{part} {count}" for part, count in parts.items()) or "none"


def _part_name(name: str, depth: int) -> str:
    """The module of a parameter, cut to `depth` levels, without layer numbers."""
    levels = name.split(".")[:-1][:depth]
    return ".".join(level for level in levels if not level.isdigit()) or name
