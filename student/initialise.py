"""Where a student's weights start: what fits is taken from a file, the rest is accounted for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import InputError, bad_field
from pipeline.vocabulary import Vocabulary
from pipeline.weights import check_finite
from student.config import StudentConfig
from student.init_file import InitFile, read_init_file
from student.init_report import Started
from student.model import HOIDetector
from student.published_names import shown
from student.text_head import TOLD

# Parameters with one row for each query or class; "no pair" follows the objects of the last.
QUERY_ROWS = ("query_source.embedding.",)
VERB_ROWS = ("verb_head.weight", "verb_head.bias")
OBJECT_ROWS = ("query_source.label.", "query_source.head.object_logits.")
OBJECT_AND_NONE_ROWS = ("object_head.",)
READING = ("verb_head.projection.", "verb_head.log_scale", "verb_head.margin")
BOX_HEADS = ("human_box_head.", "object_box_head.")
UNCOUNTED = "num_batches_tracked"


def start_from(model: HOIDetector, path: Path, vocabulary: Vocabulary) -> Started:
    """Gives a student the weights of a file, as far as they fit.

    Queries are taken from the first on, classes by their names, layers by their numbers. What has
    no place, and what finds nothing, is in the returned account.

    Args:
        model: changed in place; not at all when the file is refused.
        path: see `init_file.read_init_file`.
        vocabulary: the student's.

    Raises:
        InputError: none of the known kinds, a model of other sizes, or weights of a training that
            diverged.
    """
    # The sentences are the student's own, whatever the file's student was told.
    own = {name: value for name, value in model.state_dict().items() if name not in TOLD}
    file = read_init_file(path)
    _check_sizes(file, model.config)
    rows = _rows_by_name(file, own, vocabulary)
    used: dict[str, list[str]] = {}
    for name, key in file.routes.items():
        if name in own and not _misplaced(name, file, model.config):
            _check_shape(file, key, own[name], name in rows)
            used.setdefault(key, []).append(name)
    taken = {name: file.entries[key] for key, names in used.items() for name in names}
    _check_backbone(file, own, taken)
    check_finite({key: file.entries[key] for key in used}, file.path)
    partly: dict[str, str] = {}
    for name, value in taken.items():
        if name not in rows:
            own[name].copy_(value)
        elif share := rows[name].copy(value, own[name]):
            partly[name.rpartition(".")[0]] = share
    return Started(
        path=file.path,
        kind=file.kind,
        used=used,
        partly=partly,
        unused={
            key: _reason(key, file, own, model.config) for key in file.entries if key not in used
        },
        fresh=tuple(name for name in own if name not in taken),
    )


@dataclass(frozen=True, eq=False)
class _Rows:
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
            missing = f", none for {shown(without)}" if without else ""
            return f"{int(found.sum())} of {len(ours)} rows found among {len(theirs)}{missing}"
        return f"{len(ours)} of {len(theirs)} rows" if len(theirs) > len(ours) else ""


def _rows_by_name(
    file: InitFile, own: dict[str, Tensor], vocabulary: Vocabulary
) -> dict[str, _Rows]:
    """For the student's parameters that have a row for every query or class, by their names."""
    objects, verbs = vocabulary.objects, vocabulary.verbs
    rows = {}
    for name, key in file.routes.items():
        there = len(file.entries[key]) if file.entries[key].dim() else 0
        if name not in own:
            continue
        if name.startswith(QUERY_ROWS):
            order = np.arange(len(own[name]))
            rows[name] = _Rows(np.where(order < there, order, -1))
        elif name.startswith(VERB_ROWS):
            rows[name] = _Rows(_by_name(verbs, file.verbs, there), verbs)
        elif name.startswith(OBJECT_ROWS):
            rows[name] = _Rows(_by_name(objects, file.objects, there), objects)
        elif name.startswith(OBJECT_AND_NONE_ROWS):
            found = _by_name(objects, file.objects, there - 1)
            rows[name] = _Rows(np.append(found, there - 1), objects)
    return rows


def _by_name(ours: tuple[str, ...], theirs: tuple[str, ...] | None, count: int) -> np.ndarray:
    """Row of each of our classes among theirs; without names, equally many are the same ones."""
    if theirs is None or len(theirs) != count:
        return np.arange(len(ours)) if count == len(ours) else np.full(len(ours), -1)
    row = {_plain(name): place for place, name in enumerate(theirs) if name}
    return np.array([row.get(_plain(name), -1) for name in ours])


def _plain(name: str) -> str:
    return name.replace("_", " ").casefold()


def _misplaced(name: str, file: InitFile, config: StudentConfig) -> bool:
    return _misplaced_box_head(name, file, config) or _of_other_texts(name, file, config)


def _of_other_texts(name: str, file: InitFile, config: StudentConfig) -> bool:
    """A head that reads leads into the space of one CLIP's texts."""
    return name.startswith(READING) and file.text_model != config.text_model


def _misplaced_box_head(name: str, file: InitFile, config: StudentConfig) -> bool:
    """Learned queries predict whole boxes, queries from pairs differences from a reference."""
    return name.startswith(BOX_HEADS) and file.queries != config.queries


def _check_sizes(file: InitFile, config: StudentConfig) -> None:
    wrong = {name: value for name, value in file.sizes.items() if getattr(config, name) != value}
    if wrong:
        expected = ", ".join(f"{name} {getattr(config, name)}" for name in wrong)
        found = ", ".join(f"{name} {value}" for name, value in wrong.items())
        raise InputError(f"{file.path}: expected a model of {expected}, found {found}")


def _check_shape(file: InitFile, key: str, own: Tensor, by_rows: bool) -> None:
    theirs = file.entries[key]
    skipped = 1 if by_rows else 0
    if theirs.shape[skipped:] != own.shape[skipped:] or theirs.dim() != own.dim():
        expected = f"shape {list(own.shape)}"
        raise bad_field(file.path, key, expected, f"{list(theirs.shape)}")


def _check_backbone(file: InitFile, own: dict[str, Tensor], taken: dict[str, Tensor]) -> None:
    missing = [name for name in own if name.startswith("backbone.") and name not in taken]
    if missing:
        raise InputError(f"{file.path}: expected a whole backbone, found none of {missing[0]}")


def _reason(key: str, file: InitFile, own: dict[str, Tensor], config: StudentConfig) -> str:
    meant = [name for name, source in file.routes.items() if source == key]
    if meant and key.endswith(UNCOUNTED):
        return "frozen batch norm counts no batches"
    if any(_misplaced_box_head(name, file, config) for name in meant):
        return f"for boxes of {file.queries} queries"
    if config.verb_head == "text" and any(name in TOLD for name in meant):
        return "the student reads its own cache's sentences"
    if any(_of_other_texts(name, file, config) for name in meant if name in own):
        return "it reads the texts of another CLIP"
    if any(".layers." in name for name in meant):
        return "the student has fewer layers"
    return "the student has no such part"
