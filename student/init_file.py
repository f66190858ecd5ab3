"""Files that a student can start from, told apart by the names of their tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.errors import InputError
from pipeline.vocabulary import load_vocabulary
from pipeline.weights import WRAPPERS, named_tensors, read_checkpoint, unwrapped
from student.checkpoints import checkpoint_from, checkpoint_path, is_ours
from student.published import argument
from student.published_names import ATTENTIONS, PREFIXES, shown
from student.resnets import resnet_of

# DETR's panoptic model puts this before every name.
PANOPTIC = "detr."
# Routes of DETR's parts that CDN and EoID have twice or under another name: what they are taken
# for, unless the file also holds the part itself.
STAND_INS = (
    ("transformer.interaction_decoder.", "transformer.decoder."),
    ("sub_bbox_embed.", "bbox_embed."),
    ("obj_bbox_embed.", "bbox_embed."),
    ("obj_class_embed.", "class_embed."),
)
COCO_IDS = 91


@dataclass(frozen=True, eq=False)
class InitFile:
    """What a file offers to a student.

    Attributes:
        path: the file.
        kind: what it is, for people.
        entries: all its tensors by their own names.
        routes: name of an entry by our name of the parameter it is meant for.
        sizes: fields of `StudentConfig` that it settles; a student needs the same.
        queries: where its model's queries come from.
        text_model: of a verb head that reads, see `StudentConfig`; "" for others.
        objects, verbs: names of its classes in the order of their rows, "" for a row without a
            name; None where nothing tells.
    """

    path: Path
    kind: str
    entries: dict[str, Tensor]
    routes: dict[str, str]
    sizes: dict[str, Any]
    queries: str = "learned"
    text_model: str = ""
    objects: tuple[str, ...] | None = None
    verbs: tuple[str, ...] | None = None


def read_init_file(path: Path) -> InitFile:
    """Opens a run, a checkpoint of ours, of EoID, CDN or DETR, or a torchvision ResNet or detector.

    Args:
        path: the file, or a run folder.

    Raises:
        InputError: missing, damaged, or none of these.
    """
    file = checkpoint_path(path)
    content = read_checkpoint(file)
    if is_ours(content):
        return _ours(content, file)
    entries = named_tensors(content, file)
    arguments = content.get("args") if isinstance(content, dict) else None
    bare = {unwrapped(name, (*WRAPPERS, PANOPTIC)): name for name in entries}
    if "transformer.decoder.norm.weight" in bare:
        return _detr_like(file, entries, bare, arguments)
    return _backbone_only(file, entries, bare)


def _ours(content: dict[str, Any], file: Path) -> InitFile:
    checkpoint = checkpoint_from(content, file)
    model, vocabulary = checkpoint.recipe.model, checkpoint.vocabulary
    names = ("backbone", "hidden_dim", "feedforward_dim", "num_heads", "pre_norm")
    return InitFile(
        path=file,
        kind="a student of this project",
        entries=checkpoint.weights,
        routes={name: name for name in checkpoint.weights},
        sizes={name: getattr(model, name) for name in names},
        queries=model.queries,
        text_model=model.text_model,
        objects=vocabulary.objects,
        verbs=vocabulary.verbs,
    )


def _detr_like(
    file: Path, entries: dict[str, Tensor], bare: dict[str, str], arguments: Any
) -> InitFile:
    routes: dict[str, str] = {}
    for theirs, name in bare.items():
        if (ours := _our_name(theirs)) is not None:
            routes[ours] = name
    for part, stand_in in STAND_INS:
        if not any(theirs.startswith(part) for theirs in bare):
            for theirs, name in bare.items():
                ours = _our_name(part + theirs.removeprefix(stand_in))
                if theirs.startswith(stand_in) and ours is not None:
                    routes[ours] = name
    heads = argument(arguments, "nheads")
    sizes = {
        "backbone": resnet_of([name.removeprefix("backbone.0.body.") for name in bare]),
        "hidden_dim": _rows(entries, bare, "input_proj.weight"),
        "feedforward_dim": _rows(entries, bare, "transformer.decoder.layers.0.linear1.weight"),
        "num_heads": heads if isinstance(heads, int) else None,
        "pre_norm": "transformer.encoder.norm.weight" in bare,
    }
    published = "verb_class_embed.weight" in bare
    return InitFile(
        path=file,
        kind="an EoID or CDN checkpoint" if published else "a DETR checkpoint",
        entries=entries,
        routes=routes,
        sizes={name: value for name, value in sizes.items() if value is not None},
        objects=_object_names(entries, bare),
        verbs=_verb_names(_rows(entries, bare, "verb_class_embed.weight")),
    )


def _backbone_only(file: Path, entries: dict[str, Tensor], bare: dict[str, str]) -> InitFile:
    detector = any(name.startswith("backbone.body.") for name in bare)
    body = "backbone.body." if detector else ""
    names = [name.removeprefix(body) for name in bare if name.startswith(body)]
    found = "world" if "stem.1.0.weight" in names else resnet_of(names)
    if found is None:
        raise InputError(
            f"{file}: expected a run, a checkpoint of this project, EoID, CDN or DETR, or a"
            f" torchvision ResNet or detector, found {len(entries)} tensors"
            f" ({shown(list(entries)) or 'none'})"
        )
    # torchvision's ResNets stand in a part of that name here too, the world's backbone does not.
    own = "backbone." if found == "world" else "backbone.body."
    return InitFile(
        path=file,
        kind=f"{'a detector' if detector else 'a classifier'} on {found}",
        entries=entries,
        routes={own + name: bare[body + name] for name in names},
        sizes={"backbone": found},
    )


def _our_name(theirs: str) -> str | None:
    for old, new in PREFIXES:
        if theirs.startswith(old):
            ours = new + theirs.removeprefix(old)
            for old_part, new_part in ATTENTIONS:
                ours = ours.replace(old_part, new_part)
            return ours
    return None


def _rows(entries: dict[str, Tensor], bare: dict[str, str], name: str) -> int | None:
    return len(entries[bare[name]]) if name in bare else None


def _object_names(entries: dict[str, Tensor], bare: dict[str, str]) -> tuple[str, ...] | None:
    """Names of the rows before the last ("no object"): COCO's, by id or without the gaps.

    V-COCO's models have one class more, for verbs without object.
    """
    coco = load_vocabulary("hico-det")
    by_id = dict(zip(coco.object_ids, coco.objects, strict=True))
    rows = _rows(entries, bare, "obj_class_embed.weight")
    if rows is not None:
        known = {len(coco.objects): coco.objects, len(coco.objects) + 1: (*coco.objects, "")}
        return known.get(rows - 1)
    rows = _rows(entries, bare, "class_embed.weight")
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
