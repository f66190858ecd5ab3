"""Files that a student can start from, told apart by the names of their tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.weights import (
    WRAPPER_PREFIXES,
    check_finite,
    check_state_dict,
    read_checkpoint,
    strip_prefixes,
)
from pipeline.vocabulary import Vocabulary, load_vocabulary
from student.config import ModelConfig
from student.models.backbone import identify_resnet
from student.models.detector import HOIDetector
from student.models.text_head import TEXT_BUFFERS
from student.weights.checkpoint_file import checkpoint_path, is_own_checkpoint, parse_checkpoint
from student.weights.published import ATTENTION_KEYS, KEY_PREFIXES, checkpoint_argument, join_names

# DETR's panoptic model puts this before every name.
PANOPTIC_PREFIX = "detr."
# Parts of DETR that CDN and EoID have twice or under another name: what they are taken
# for, unless the file also holds the part itself.
FALLBACK_PREFIXES = (
    ("transformer.interaction_decoder.", "transformer.decoder."),
    ("sub_bbox_embed.", "bbox_embed."),
    ("obj_bbox_embed.", "bbox_embed."),
    ("obj_class_embed.", "class_embed."),
)
COCO_IDS = 91


@dataclass(frozen=True, eq=False)
class PretrainedFile:
    """What a file offers to a student.

    Attributes:
        path: the file.
        kind: what it is, for people.
        entries: all its tensors by their own names.
        key_map: name of an entry by our name of the parameter it is meant for.
        sizes: fields of `ModelConfig` that it settles; a student needs the same.
        queries: where its model's queries come from.
        text_model: of a verb head that reads, see `ModelConfig`; "" for others.
        objects, verbs: names of its classes in the order of their rows, "" for a row without a
            name; None where nothing tells.
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


def read_pretrained(path: Path) -> PretrainedFile:
    """Opens a run, a checkpoint of ours, of EoID, CDN or DETR, or a torchvision ResNet or detector.

    Args:
        path: the file, or a run folder.

    Raises:
        InputError: missing, damaged, or none of these.
    """
    file = checkpoint_path(path)
    content = read_checkpoint(file)
    if is_own_checkpoint(content):
        return _own_checkpoint(content, file)
    entries = check_state_dict(content, file)
    arguments = content.get("args") if isinstance(content, dict) else None
    bare = {strip_prefixes(name, (*WRAPPER_PREFIXES, PANOPTIC_PREFIX)): name for name in entries}
    if "transformer.decoder.norm.weight" in bare:
        return _detr_checkpoint(file, entries, bare, arguments)
    return _backbone_file(file, entries, bare)


def _own_checkpoint(content: dict[str, Any], file: Path) -> PretrainedFile:
    checkpoint = parse_checkpoint(content, file)
    model, vocabulary = checkpoint.recipe.model, checkpoint.vocabulary
    names = ("backbone", "hidden_dim", "feedforward_dim", "num_heads", "pre_norm")
    return PretrainedFile(
        path=file,
        kind="a student of this project",
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
        if (ours := _own_key(theirs)) is not None:
            key_map[ours] = name
    for part, stand_in in FALLBACK_PREFIXES:
        if not any(theirs.startswith(part) for theirs in bare):
            for theirs, name in bare.items():
                ours = _own_key(part + theirs.removeprefix(stand_in))
                if theirs.startswith(stand_in) and ours is not None:
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
    detector = any(name.startswith("backbone.body.") for name in bare)
    body = "backbone.body." if detector else ""
    names = [name.removeprefix(body) for name in bare if name.startswith(body)]
    found = "toy" if "stem.1.0.weight" in names else identify_resnet(names)
    if found is None:
        raise InputError(
            f"{file}: expected a run, a checkpoint of this project, EoID, CDN or DETR, or a"
            f" torchvision ResNet or detector, found {len(entries)} tensors"
            f" ({join_names(list(entries)) or 'none'})"
        )
    # torchvision's ResNets stand in a part of that name here too, the toy backbone does not.
    own = "backbone." if found == "toy" else "backbone.body."
    return PretrainedFile(
        path=file,
        kind=f"{'a detector' if detector else 'a classifier'} on {found}",
        entries=entries,
        key_map={own + name: bare[body + name] for name in names},
        sizes={"backbone": found},
    )


def _own_key(theirs: str) -> str | None:
    for old, new in KEY_PREFIXES:
        if theirs.startswith(old):
            ours = new + theirs.removeprefix(old)
            for old_part, new_part in ATTENTION_KEYS:
                ours = ours.replace(old_part, new_part)
            return ours
    return None


def _num_rows(entries: dict[str, Tensor], bare: dict[str, str], name: str) -> int | None:
    return len(entries[bare[name]]) if name in bare else None


def _object_names(entries: dict[str, Tensor], bare: dict[str, str]) -> tuple[str, ...] | None:
    """Names of the rows before the last ("no object"): COCO's, by id or without the gaps.

    V-COCO's models have one class more, for verbs without object.
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
    # A DETR trained on other classes: as many as the student's need not be the same.
    return None if rows is None else ("",) * (rows - 1)


def _verb_names(rows: int | None) -> tuple[str, ...] | None:
    known = {
        vocabulary.num_verbs: vocabulary.verbs
        for vocabulary in (load_vocabulary("hico-det"), load_vocabulary("vcoco"))
    }
    return None if rows is None else known.get(rows)


# Parameters with one row for each query or class; "no pair" follows the objects of the last.
QUERY_ROWS = ("query_source.embedding.",)
VERB_ROWS = ("verb_head.weight", "verb_head.bias")
OBJECT_ROWS = ("query_source.label.", "query_source.head.object_logits.")
OBJECT_AND_NONE_ROWS = ("object_head.",)
TEXT_PARAMS = ("verb_head.projection.", "verb_head.log_scale", "verb_head.margin")
BOX_HEADS = ("human_box_head.", "object_box_head.")
BATCH_COUNTER = "num_batches_tracked"


def load_pretrained(model: HOIDetector, path: Path, vocabulary: Vocabulary) -> LoadReport:
    """Gives a student the weights of a file, as far as they fit.

    Queries are taken from the first on, classes by their names, layers by their numbers. What has
    no place, and what finds nothing, is in the returned account.

    Args:
        model: changed in place; not at all when the file is refused.
        path: see `read_pretrained`.
        vocabulary: the student's.

    Raises:
        InputError: none of the known kinds, a model of other sizes, or weights of a training that
            diverged.
    """
    # The sentences are the student's own, whatever the file's student was told.
    own = {name: value for name, value in model.state_dict().items() if name not in TEXT_BUFFERS}
    file = read_pretrained(path)
    _check_sizes(file, model.config)
    rows = _build_row_maps(file, own, vocabulary)
    used: dict[str, list[str]] = {}
    for name, key in file.key_map.items():
        if name in own and not _is_incompatible(name, file, model.config):
            _check_shape(file, key, own[name], name in rows)
            used.setdefault(key, []).append(name)
    taken = {name: file.entries[key] for key, names in used.items() for name in names}
    _check_backbone(file, own, taken)
    check_finite({key: file.entries[key] for key in used}, file.path)
    partial: dict[str, str] = {}
    for name, value in taken.items():
        if name not in rows:
            own[name].copy_(value)
        elif share := rows[name].copy(value, own[name]):
            partial[name.rpartition(".")[0]] = share
    return LoadReport(
        path=file.path,
        kind=file.kind,
        used=used,
        partial=partial,
        unused={
            key: _unused_reason(key, file, own, model.config)
            for key in file.entries
            if key not in used
        },
        missing=tuple(name for name in own if name not in taken),
    )


@dataclass(frozen=True, eq=False)
class _RowMap:
    """Which row of a file's tensor each row of ours takes, -1 for none, and what ours stand for."""

    order: np.ndarray
    names: tuple[str, ...] = ()

    def copy(self, theirs: Tensor, ours: Tensor) -> str:
        """Fills the rows of `ours` that there are; says so where that is not all of both."""
        order = torch.from_numpy(self.order)
        found = order >= 0
        ours[found] = theirs[order[found]].to(ours.dtype)
        without = [name for name, row in zip(self.names, self.order, strict=False) if row < 0]
        if not found.all():
            missing = f", none for {join_names(without)}" if without else ""
            return f"{int(found.sum())} of {len(ours)} rows found among {len(theirs)}{missing}"
        return f"{len(ours)} of {len(theirs)} rows" if len(theirs) > len(ours) else ""


def _build_row_maps(
    file: PretrainedFile, own: dict[str, Tensor], vocabulary: Vocabulary
) -> dict[str, _RowMap]:
    """For the student's parameters that have a row for every query or class, by their names."""
    objects, verbs = vocabulary.objects, vocabulary.verbs
    rows = {}
    for name, key in file.key_map.items():
        there = len(file.entries[key]) if file.entries[key].dim() else 0
        if name not in own:
            continue
        if name.startswith(QUERY_ROWS):
            order = np.arange(len(own[name]))
            rows[name] = _RowMap(np.where(order < there, order, -1))
        elif name.startswith(VERB_ROWS):
            rows[name] = _RowMap(_match_rows(verbs, file.verbs, there), verbs)
        elif name.startswith(OBJECT_ROWS):
            rows[name] = _RowMap(_match_rows(objects, file.objects, there), objects)
        elif name.startswith(OBJECT_AND_NONE_ROWS):
            found = _match_rows(objects, file.objects, there - 1)
            rows[name] = _RowMap(np.append(found, there - 1), objects)
    return rows


def _match_rows(ours: tuple[str, ...], theirs: tuple[str, ...] | None, count: int) -> np.ndarray:
    """Row of each of our classes among theirs; without names, equally many are the same ones."""
    if theirs is None or len(theirs) != count:
        return np.arange(len(ours)) if count == len(ours) else np.full(len(ours), -1)
    row = {_normalise_name(name): place for place, name in enumerate(theirs) if name}
    return np.array([row.get(_normalise_name(name), -1) for name in ours])


def _normalise_name(name: str) -> str:
    return name.replace("_", " ").casefold()


def _is_incompatible(name: str, file: PretrainedFile, config: ModelConfig) -> bool:
    return _has_other_queries(name, file, config) or _has_other_text_model(name, file, config)


def _has_other_text_model(name: str, file: PretrainedFile, config: ModelConfig) -> bool:
    """A head that reads leads into the space of one CLIP's texts."""
    return name.startswith(TEXT_PARAMS) and file.text_model != config.text_model


def _has_other_queries(name: str, file: PretrainedFile, config: ModelConfig) -> bool:
    """Learned queries predict whole boxes, queries from proposals differences from a reference."""
    return name.startswith(BOX_HEADS) and file.queries != config.queries


def _check_sizes(file: PretrainedFile, config: ModelConfig) -> None:
    wrong = {name: value for name, value in file.sizes.items() if getattr(config, name) != value}
    if wrong:
        expected = ", ".join(f"{name} {getattr(config, name)}" for name in wrong)
        found = ", ".join(f"{name} {value}" for name, value in wrong.items())
        raise InputError(f"{file.path}: expected a model of {expected}, found {found}")


def _check_shape(file: PretrainedFile, key: str, own: Tensor, by_rows: bool) -> None:
    theirs = file.entries[key]
    skipped = 1 if by_rows else 0
    if theirs.shape[skipped:] != own.shape[skipped:] or theirs.dim() != own.dim():
        expected = f"shape {list(own.shape)}"
        raise bad_field(file.path, key, expected, f"{list(theirs.shape)}")


def _check_backbone(file: PretrainedFile, own: dict[str, Tensor], taken: dict[str, Tensor]) -> None:
    missing = [name for name in own if name.startswith("backbone.") and name not in taken]
    if missing:
        raise InputError(f"{file.path}: expected a whole backbone, found none of {missing[0]}")


def _unused_reason(
    key: str, file: PretrainedFile, own: dict[str, Tensor], config: ModelConfig
) -> str:
    meant = [name for name, source in file.key_map.items() if source == key]
    if meant and key.endswith(BATCH_COUNTER):
        return "frozen batch norm counts no batches"
    if any(_has_other_queries(name, file, config) for name in meant):
        return f"for boxes of {file.queries} queries"
    if config.verb_head == "text" and any(name in TEXT_BUFFERS for name in meant):
        return "the student reads its own cache's sentences"
    if any(_has_other_text_model(name, file, config) for name in meant if name in own):
        return "it reads the texts of another CLIP"
    if any(".layers." in name for name in meant):
        return "the student has fewer layers"
    return "the student has no such part"


LOAD_REPORT = "pretrained.json"


@dataclass(frozen=True)
class LoadReport:
    """The account of a start; every tensor of the file is either used or unused.

    Attributes:
        path: the file.
        kind: what it is.
        used: our names of the parameters that a tensor of the file filled, by its name.
        partial: how many rows were taken, by our name of the part, where it was not all of them.
        unused: why a tensor was left, by its name.
        missing: our names of the parameters that keep their random start.
    """

    path: Path
    kind: str
    used: dict[str, list[str]]
    partial: dict[str, str]
    unused: dict[str, str]
    missing: tuple[str, ...]

    def lines(self) -> list[str]:
        """A short account, parts instead of tensors."""
        total = len(self.used) + len(self.unused)
        lines = [f"start: {self.path.name}, {self.kind}: {len(self.used)} of {total} tensors used"]
        taken = [name for names in self.used.values() for name in names]
        lines.append(f"  taken: {_count_parts(taken, 1)}")
        lines += [f"  {part}: {share}" for part, share in self.partial.items()]
        for reason in dict.fromkeys(self.unused.values()):
            left = [name for name, why in self.unused.items() if why == reason]
            lines.append(f"  left, {reason}: {_count_parts(left, 2)}")
        if self.missing:
            lines.append(f"  random: {_count_parts(self.missing, 1)}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """The whole account, for a file."""
        return {
            "file": str(self.path),
            "kind": self.kind,
            "used": self.used,
            "partly": self.partial,
            "unused": self.unused,
            "random": list(self.missing),
        }


def _count_parts(names: Iterable[str], words: int) -> str:
    """Parts with the number of their tensors: "backbone 265, encoder 72"."""
    parts = Counter(_part_name(name, words) for name in names)
    return ", ".join(f"{part} {count}" for part, count in parts.items()) or "none"


def _part_name(name: str, words: int) -> str:
    """The first words of a name, without its last one and without numbers."""
    first = name.split(".")
    kept = [word for word in first[:-1][:words] if not word.isdigit()]
    return ".".join(kept) or name
