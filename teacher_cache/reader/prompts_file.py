"""A small file of sentences about new actions, which a student that reads can be given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import sha256_of_chunks, sha256_of_json
from teacher_cache.reader.format import FORMAT_VERSION
from teacher_cache.reader.shard import READ_ERRORS, damage_error, open_cache_file

FILE_KIND = "eoid-prompts"
FILE_DESCRIPTION = "a file of eoid-cache prompts"


@dataclass(frozen=True, eq=False)
class ActionPrompts:
    """Sentences about actions, embedded by a teacher's text tower.

    Attributes:
        text_model: identifies the CLIP that embedded them, as `TeacherCache.text_model` does.
        verbs, verb_ings: names of A actions and their forms in sentences ("jumping over").
        actions: (K,) int64, the action of every sentence.
        objects: K names of the objects that they are about.
        prompts: K groups of one sentence for each template.
        embeddings: (K, D) float32, normalised.
    """

    text_model: str
    verbs: tuple[str, ...]
    verb_ings: tuple[str, ...]
    actions: np.ndarray
    objects: tuple[str, ...]
    prompts: tuple[tuple[str, ...], ...]
    embeddings: np.ndarray

    def digest(self) -> str:
        """SHA-256 of everything in it."""
        numbers = np.ascontiguousarray(self.embeddings, dtype="<f4").tobytes()
        return sha256_of_json(
            {
                "kind": FILE_KIND,
                "format_version": FORMAT_VERSION,
                "text_model": self.text_model,
                "verbs": self.verbs,
                "ings": self.verb_ings,
                "actions": self.actions.tolist(),
                "objects": self.objects,
                "prompts": self.prompts,
                "text_embeddings": sha256_of_chunks(iter([numbers])),
            }
        )


def read_prompts_file(path: Path | str) -> ActionPrompts:
    """Reads a file that `eoid-cache prompts` wrote.

    Raises:
        InputError: missing, damaged, of another kind or of another format version.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with open_cache_file(path, None) as file:
            if file.attrs.get("kind") != FILE_KIND:
                raise bad_field(path, "kind", FILE_KIND, file.attrs.get("kind", "none"))
            found = ActionPrompts(
                text_model=str(file.attrs["text_model"]),
                verbs=_read_strings(file, "verbs/name"),
                verb_ings=_read_strings(file, "verbs/ing"),
                actions=file["interactions/verb"][()].astype(np.int64),
                objects=_read_strings(file, "interactions/object"),
                prompts=tuple(tuple(row) for row in file["prompts"].asstr()[()].tolist()),
                embeddings=file["text_embeddings"][()].astype(np.float32),
            )
            seal = file.attrs["fingerprint"]
    except InputError:
        raise
    except READ_ERRORS as error:
        raise damage_error(path, FILE_DESCRIPTION, error) from None
    if found.digest() != seal:
        raise damage_error(path, FILE_DESCRIPTION, "its fingerprint is another")
    return found


def _read_strings(file: Any, name: str) -> tuple[str, ...]:
    return tuple(file[name].asstr()[()].tolist())
