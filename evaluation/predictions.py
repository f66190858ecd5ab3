"""Predictions on disk in the HOIA/PPDM JSON form, which other HOI projects read and write too.

A list with one entry for each image: `file_name`, `predictions` (boxes: `bbox` xyxy in pixels,
`category_id` as in annotation files) and `hoi_prediction` (`subject_id` and `object_id` pointing
into the boxes, `category_id` the verb counted from 1, `score`). As in annotation files of the same
form, vocabularies with roles (V-COCO's) count verbs from 0 and have `object_id` -1 where a verb has
no object. Our own files say in their first entry which `vocabulary` their numbers are of.
"""

from __future__ import annotations

import json
import pickletools
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.annotations.box_format import CXCYWH, MAX_COORDINATE, XYWH, XYXY, BoxFormatCheck
from pipeline.types import Detections
from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import atomic_write, identify_file, iter_json
from pipeline.vocabulary import Vocabulary

# What a run calls its predictions.
PREDICTIONS_FILE = "predictions.json"
BOX_EXPECTED = "four finite numbers x1, y1, x2, y2 in pixels with x1 <= x2 and y1 <= y2"
CHECKPOINT_SUFFIXES = (".pt", ".pth")


def find_predictions_file(path: Path) -> Path:
    """A predictions file, or that of a run's folder.

    Raises:
        InputError: a checkpoint, or a folder without predictions; says how to get some.
    """
    how = f"to predict and score with it: eoid-train evaluate {path} --data DATASET"
    if path.suffix in CHECKPOINT_SUFFIXES:
        raise InputError(f"{path}: expected predictions, found a checkpoint; {how}")
    if not path.is_dir():
        return path
    file = path / PREDICTIONS_FILE
    if not file.is_file():
        raise InputError(f"{path}: expected {PREDICTIONS_FILE} of a run, found none; {how}")
    return file


def predictions_name(file: Path) -> str:
    """What people call the predictions of a file: a run's by its folder, others by the file."""
    return file.resolve().parent.name if file.name == PREDICTIONS_FILE else file.stem


def write_predictions(
    path: Path | str, detections: Sequence[Detections], vocabulary: Vocabulary
) -> None:
    """Writes detections, one image a line, whole or not at all.

    Numbers get as many digits as tell them apart, so the file scores exactly like `detections`.
    """
    category_ids = np.array(vocabulary.category_ids)
    counted_from = np.array([0, 0, vocabulary.first_verb_id])
    marker = {"name": vocabulary.name, "digest": vocabulary.digest()}
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for index, item in enumerate(detections):
            first = {} if index else {"vocabulary": marker}
            entry = {
                "file_name": item.image_id,
                **first,
                "predictions": [
                    {"bbox": box, "category_id": category}
                    for box, category in zip(
                        _shortest_floats(item.boxes),
                        category_ids[item.labels].tolist(),
                        strict=True,
                    )
                ],
                "hoi_prediction": [
                    {"subject_id": human, "object_id": target, "category_id": verb, "score": s}
                    for (human, target, verb), s in zip(
                        (item.hois + counted_from).tolist(),
                        _shortest_floats(item.scores),
                        strict=True,
                    )
                ],
            }
            file.write(",\n" if index else "[\n")
            file.write(json.dumps(entry, separators=(",", ":"), ensure_ascii=False))
        file.write("\n]\n" if detections else "[]\n")


def read_predictions(
    path: Path | str,
    vocabulary: Vocabulary,
    sizes: Mapping[str, tuple[int, int] | None] | None = None,
) -> list[Detections]:
    """Reads predictions of any HOI project that writes this form.

    Args:
        path: the JSON file.
        vocabulary: what its numbers mean.
        sizes: width and height of images, by name, as far as known.

    Returns:
        one entry for each image of the file, in its order; scores as float64.

    Raises:
        InputError: the file is missing, is not JSON, is of another vocabulary or numbering, names
            an image twice, or an entry is wrong.
    """
    path = Path(path)
    detections, names = [], set()
    for index, entry in enumerate(iterate_entries(path)):
        name = entry.get("file_name") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            official = isinstance(entry, dict) and "person_box" in entry
            found = "V-COCO's official layout, which eoid-eval vcoco scores" if official else entry
            raise bad_field(path, f"entry {index}", "an object with file_name", found)
        if name in names:
            raise bad_field(path, f"{name}: file_name", "each image once", "a second entry")
        if "vocabulary" in entry:
            _check_vocabulary_marker(path, entry["vocabulary"], vocabulary)
        names.add(name)
        detections.append(_parse_detections(EntryFields(path, name, entry), vocabulary))
    if not detections:
        raise bad_field(path, "file", "a list with an entry for each image", "an empty list")
    form = BoxFormatCheck(XYXY)
    for one in detections:
        form.add(one.boxes, (sizes or {}).get(one.image_id), one.image_id)
    form.check(path, "predictions.bbox")
    for one in detections:
        inverted = (one.boxes[:, 2:] < one.boxes[:, :2]).any(axis=1)
        if inverted.any():
            row = int(np.argmax(inverted))
            where = f"{one.image_id}: predictions[{row}].bbox"
            box = _shortest_floats(one.boxes[row])
            raise InputError(f"{bad_field(path, where, BOX_EXPECTED, box)}{box_hint(box)}")
    check_numbering(path, detections, vocabulary)
    return detections


def _check_vocabulary_marker(path: Path, marker: Any, vocabulary: Vocabulary) -> None:
    told = marker if isinstance(marker, dict) else {}
    if told.get("digest") != vocabulary.digest():
        expected = f"predictions of vocabulary {vocabulary.name}"
        raise bad_field(path, "vocabulary", expected, str(told.get("name", marker)))


def _parse_detections(fields: EntryFields, vocabulary: Vocabulary) -> Detections:
    boxes = fields.column(
        *("predictions", "bbox", REAL_KINDS, (4,)),
        BOX_EXPECTED,
        # NaN is not below the limit either.
        lambda box: (np.abs(box) <= MAX_COORDINATE).all(axis=1),
    )
    categories = fields.column(
        *("predictions", "category_id", INTEGER_KINDS, ()),
        f"an object id of vocabulary {vocabulary.name}, one of"
        f" {min(vocabulary.category_ids)} to {max(vocabulary.category_ids)}",
        lambda category: np.isin(category, vocabulary.category_ids),
        lambda found: object_hint(found, vocabulary),
    )

    def box_numbers(key: str, least: int) -> np.ndarray:
        return fields.column(
            *("hoi_prediction", key, INTEGER_KINDS, ()),
            f"the number of a box, {least} to {len(boxes) - 1}",
            lambda box: (box >= least) & (box < len(boxes)),
        )

    humans = box_numbers("subject_id", 0)
    # A verb of V-COCO may have no object.
    objects = box_numbers("object_id", -1 if vocabulary.roles else 0)
    first = vocabulary.first_verb_id
    last = first + vocabulary.num_verbs - 1
    verbs = fields.column(
        *("hoi_prediction", "category_id", INTEGER_KINDS, ()),
        f"a verb number of vocabulary {vocabulary.name}, {first} to {last}",
        lambda verb: (verb >= first) & (verb <= last),
        lambda found: verb_hint(found, vocabulary),
    )
    scores = fields.column(
        *("hoi_prediction", "score", REAL_KINDS, ()),
        "a finite number",
        lambda score: np.isfinite(score),
    )
    return Detections(
        image_id=fields.image,
        boxes=boxes.astype(np.float32),
        labels=np.array(
            [vocabulary.label_by_category_id[c] for c in categories.tolist()], dtype=np.int64
        ),
        hois=np.column_stack([humans, objects, verbs - first]).astype(np.int64),
        scores=scores.astype(np.float64),
    )


def _shortest_floats(values: np.ndarray) -> list[Any]:
    """Nested lists of Python floats with the fewest digits that give `values` back in their own
    precision (0.1, not 0.10000000149011612)."""
    return np.asarray(values).astype(str).astype(np.float64).tolist()


INTEGER_KINDS, REAL_KINDS = "iu", "iuf"
BOOL_TYPES = frozenset((bool, np.bool_))


def object_hint(found: Any, vocabulary: Vocabulary) -> str:
    """What an object id that the vocabulary lacks may mean."""
    if isinstance(found, int) and 0 <= found <= vocabulary.num_objects:
        last = vocabulary.num_objects - 1
        return f"; does this file number objects 0 to {last} instead of by their ids?"
    return "; is this file of another vocabulary?" if isinstance(found, int) else ""


def verb_hint(found: Any, vocabulary: Vocabulary) -> str:
    """What a verb number outside the vocabulary may mean."""
    first = vocabulary.first_verb_id
    if isinstance(found, int) and found == (0 if first else vocabulary.num_verbs):
        return f"; this file counts verbs from {1 - first}, not from {first}"
    return "; is this file of another vocabulary?" if isinstance(found, int) else ""


def box_hint(found: list[float]) -> str:
    """What four numbers that are no box may mean."""
    return f"; does this file give {XYWH} or {CXCYWH}?" if min(found[2:]) > 0 else ""


class EntryFields:
    """The lists of one image's entry."""

    def __init__(self, path: Path | str, image: str, entry: dict[str, Any]) -> None:
        self.path, self.image, self._entry = path, image, entry

    def column(
        self,
        field: str,
        key: str,
        kinds: str,
        shape: tuple[int, ...],
        expected: str,
        valid: Callable[[np.ndarray], np.ndarray],
        hint: Callable[[Any], str] = lambda found: "",
    ) -> np.ndarray:
        """The values under `key` of all rows of `field`, checked.

        Args:
            kinds: numpy kinds the values may have.
            shape: shape of one value.
            expected: what an error says was expected.
            valid: from the column to a mask of its good rows.
            hint: what a wrong value may mean, said behind it.
        """
        rows = self._entry.get(field)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise bad_field(self.path, f"{self.image}: {field}", "a list of objects", rows)
        if not rows:
            return np.zeros((0, *shape), dtype=np.int64 if kinds == INTEGER_KINDS else np.float64)
        values = [row.get(key) for row in rows]
        column = _array(values)
        fits = column is not None and column.dtype.kind in kinds and column.shape[1:] == shape
        if column is None or not fits or contains_bools(values):
            good = np.array([_has_type(value, kinds, shape) for value in values])
        else:
            good = valid(column)
        if column is None or not good.all():
            row = int(np.argmin(good))
            where = f"{self.image}: {field}[{row}].{key}"
            if key not in rows[row]:
                raise bad_field(self.path, where, expected, "nothing")
            value = values[row]
            raise InputError(f"{bad_field(self.path, where, expected, repr(value))}{hint(value)}")
        return column


def _array(values: list[Any]) -> np.ndarray | None:
    """The values as an array, None where they differ in shape."""
    try:
        return np.array(values)
    except ValueError:
        return None


def _has_type(value: Any, kinds: str, shape: tuple[int, ...]) -> bool:
    single = _array(value)
    return (
        single is not None
        and single.dtype.kind in kinds
        and single.shape == shape
        and not contains_bools([value])
    )


def contains_bools(values: Sequence[Any]) -> bool:
    """Whether a truth value stands among numbers or in lists of numbers, where numpy makes it 0
    or 1."""
    lists = (value for value in values if isinstance(value, list | tuple | np.ndarray))
    return not BOOL_TYPES.isdisjoint(map(type, chain(values, *lists)))


# Fewer pairs tell nothing about the whole file.
MIN_PAIRS = 20
# A numbering is the right one when so many pairs are interactions under it, and no more than this
# share of them as the file stands.
MIN_VALID_SHARE, MAX_RELATIVE_SHARE = 0.9, 0.75


def check_numbering(path: Path, detections: Sequence[Detections], vocabulary: Vocabulary) -> None:
    """Looks at which predicted pairs are interactions of the vocabulary.

    Verbs that are one off are no outlandish numbers, but they hardly ever go with the objects.

    Raises:
        InputError: nearly all pairs would be interactions with the verbs one off, or most have
            their person as object.
    """
    verbs, objects = verb_object_pairs(detections)
    if len(verbs) < MIN_PAIRS:
        return
    swapped = sum(_count_swapped(item, vocabulary) for item in detections)
    if 2 * swapped > len(verbs):
        raise InputError(
            f"{path}: hoi_prediction: expected a person as subject_id and a thing as object_id,"
            f" found subject and object swapped in {swapped} of {len(verbs)} pairs"
        )
    share = vocabulary.valid[verbs, objects].mean()
    # A file that counts from 0 where 1 was expected was read one too low, and the other way round.
    shifted = verbs + (1 if vocabulary.first_verb_id else -1)
    inside = (shifted >= 0) & (shifted < vocabulary.num_verbs)
    other = vocabulary.valid[shifted.clip(0, vocabulary.num_verbs - 1), objects] & inside
    first = vocabulary.first_verb_id
    if other.mean() >= MIN_VALID_SHARE and share <= MAX_RELATIVE_SHARE * other.mean():
        raise InputError(
            f"{path}: hoi_prediction.category_id: expected verbs of vocabulary {vocabulary.name}"
            f" counted from {first}, found verbs counted from {1 - first}: so counted"
            f" {100 * other.mean():.0f} % of the pairs are interactions, else {100 * share:.0f} %"
        )


def _count_swapped(item: Detections, vocabulary: Vocabulary) -> int:
    """How many pairs have a person as object and something else as subject."""
    pairs = item.labels[item.hois[item.hois[:, 1] >= 0, :2]]
    return int(((pairs[:, 0] != vocabulary.person) & (pairs[:, 1] == vocabulary.person)).sum())


def verb_object_pairs(detections: Sequence[Detections]) -> tuple[np.ndarray, np.ndarray]:
    """(P,) verb and object of all pairs that have an object."""
    hois = np.concatenate([np.zeros((0, 3), np.int64), *(item.hois for item in detections)])
    labels = [item.labels[item.hois[:, 1]] for item in detections if len(item.hois)]
    paired = hois[:, 1] >= 0
    return hois[paired, 2], np.concatenate([np.zeros(0, np.int64), *labels])[paired]


PICKLE_SUFFIXES = (".pkl", ".pickle")
# How pickles of protocol 2 and later begin.
PICKLE_PREFIXES = tuple(bytes([0x80, version]) for version in range(2, 6))
PICKLE_EXPECTED = "a pickle of lists, dictionaries, numbers and numpy arrays"
# Opcodes by what they do.
NUMBER_OPCODES = (
    "INT",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG",
    "LONG1",
    "LONG4",
    "FLOAT",
    "BINFLOAT",
)
TEXT_OPCODES = (
    "STRING",
    "BINSTRING",
    "SHORT_BINSTRING",
    "UNICODE",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
)
BYTES_OPCODES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
LITERAL_OPCODES = frozenset((*NUMBER_OPCODES, *TEXT_OPCODES, *BYTES_OPCODES))
CONSTANT_OPCODES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
MEMO_PUT_OPCODES = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))
MEMO_GET_OPCODES = frozenset(("GET", "BINGET", "LONG_BINGET"))
TUPLE_OPCODES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
CALL_OPCODES = frozenset(("REDUCE", "NEWOBJ"))
IGNORED_OPCODES = frozenset(("PROTO", "FRAME"))


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle, by its name or its first bytes."""
    if path.suffix.lower() in PICKLE_SUFFIXES:
        return True
    try:
        with open(path, "rb") as file:
            return file.read(2) in PICKLE_PREFIXES
    except OSError:
        return False


def iterate_entries(path: Path) -> Iterator[Any]:
    """The entries of a file that holds a list, JSON or a pickle.

    Raises:
        InputError: the file is missing, damaged, holds something else than a list, or a pickle
            holds other things than plain data; the thing is named.
    """
    if not is_pickle(path):
        yield from iter_json(path)
        return
    try:
        found = _unpickle(path.read_bytes())
        if not isinstance(found, list):
            raise bad_field(path, "file", "a list", found)
        # Emptied from its end, so that only one form of each entry is in memory.
        found.reverse()
        while found:
            yield _to_plain_data(found.pop())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except InputError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        found = identify_file(path) or error
        raise InputError(f"{path}: expected {PICKLE_EXPECTED}, found {found}") from None
    except (OverflowError, RecursionError, MemoryError):
        raise InputError(f"{path}: expected {PICKLE_EXPECTED}, found a damaged file") from None


class _GlobalName(str):
    """The name of a class or function, module first; what it names is never looked up."""


class _DtypePlaceholder:
    """numpy's type of numbers, whose byte order a pickle tells after its name."""

    def __init__(self, code: str) -> None:
        self.dtype = np.dtype(code)
        if self.dtype.kind not in "biuf":
            raise ValueError(f"an array of {code}")


class _ArrayPlaceholder:
    """An array whose content a pickle tells after its class."""

    value: np.ndarray


def _unpickle(pickled: bytes) -> Any:
    """What a pickle's opcodes build."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}
    opcodes: Iterator[tuple[pickletools.OpcodeInfo, Any, Any]] = pickletools.genops(pickled)

    def since_mark() -> list[Any]:
        mark = marks.pop()
        values = stack[mark:]
        del stack[mark:]
        return values

    for opcode, value, _ in opcodes:
        name = opcode.name
        if name in LITERAL_OPCODES:
            stack.append(value)
        elif name in MEMO_PUT_OPCODES:
            memo[value] = stack[-1]
        elif name in MEMO_GET_OPCODES:
            stack.append(memo[value])
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name in CONSTANT_OPCODES:
            stack.append(CONSTANT_OPCODES[name])
        elif name in ("APPENDS", "APPEND"):
            values = since_mark() if name == "APPENDS" else [stack.pop()]
            stack[-1].extend(values)
        elif name in ("SETITEMS", "SETITEM"):
            values = since_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            stack[-1].update(zip(values[::2], values[1::2], strict=True))
        elif name in ("LIST", "TUPLE"):
            values = since_mark()
            stack.append(values if name == "LIST" else tuple(values))
        elif name == "DICT":
            values = since_mark()
            stack.append(dict(zip(values[::2], values[1::2], strict=True)))
        elif name in TUPLE_OPCODES:
            count = TUPLE_OPCODES[name]
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "GLOBAL":
            stack.append(_GlobalName(value.replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            stack[-2:] = [_GlobalName(".".join(stack[-2:]))]
        elif name in CALL_OPCODES:
            stack[-2:] = [_call_result(*stack[-2:])]
        elif name == "BUILD":
            _set_state(stack[-2], stack.pop())
        elif name == "STOP":
            return stack.pop()
        elif name not in IGNORED_OPCODES:
            raise ValueError(f"the opcode {name}")
    raise ValueError("no end")


def _call_result(name: Any, arguments: Any) -> Any:
    """What stands for a call's result."""
    if not isinstance(name, _GlobalName) or not isinstance(arguments, tuple):
        raise ValueError("a call of something without a name")
    first, last = name.split(".")[0], name.split(".")[-1]
    # So Python 3 writes bytes in the protocols of Python 2.
    if last == "bytes" and not arguments:
        return b""
    if name == "_codecs.encode":
        return arguments[0].encode("latin-1")
    # `defaultdict` is made with the name of what makes its values.
    if all(isinstance(argument, _GlobalName) for argument in arguments):
        return {}
    if first == "numpy":
        if last == "dtype":
            return _DtypePlaceholder(arguments[0])
        if last == "_reconstruct":
            return _ArrayPlaceholder()
        if last == "scalar":
            return _decode_array(arguments[1], arguments[0], (), False).item()
        if last == "_frombuffer":
            raw, dtype, shape, order = arguments
            return _decode_array(raw, dtype, shape, order == "F")
    raise ValueError(f"a call of {name}")


def _set_state(target: Any, state: Any) -> None:
    if isinstance(target, _DtypePlaceholder):
        target.dtype = target.dtype.newbyteorder(state[1])
    elif isinstance(target, _ArrayPlaceholder):
        shape, dtype, by_columns, raw = state[-4:]
        target.value = _decode_array(raw, dtype, shape, by_columns)
    elif not isinstance(target, dict):
        raise ValueError(f"a state of {type(target).__name__}")


def _decode_array(raw: Any, dtype: Any, shape: tuple[int, ...], by_columns: bool) -> np.ndarray:
    # Python 2 has the bytes as text.
    content = raw.encode("latin-1") if isinstance(raw, str) else raw
    array = np.frombuffer(content, dtype.dtype)
    return array.reshape(shape, order="F" if by_columns else "C")


def _to_plain_data(value: Any) -> Any:
    """A value with arrays in place of what stands for them."""
    if isinstance(value, float | int | str):
        return value
    if isinstance(value, _ArrayPlaceholder):
        return value.value
    if isinstance(value, dict):
        return {key: _to_plain_data(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain_data(held) for held in value]
    return value
