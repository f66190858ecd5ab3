"""A small file of sentences about new actions, which a student that reads can be given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import sha256_of_chunks, sha256_of_json
from teacher_cache.reader.format import FORMAT_VERSION
from teacher_cache.reader.shard import DAMAGE, damaged, open_finished

KIND = "eoid-prompts"
WHAT = "a file of eoid-cache prompts"


@dataclass(frozen=True, eq=False)
class NewPrompts:
    """Sentences about actions, embedded by a teacher's text tower.

    Attributes:
        text_model: identifies the CLIP that embedded them, as `TeacherCache.text_model` does.
        verbs, ings: names of A actions and their forms in sentences ("jumping over").
        actions: (K,) int64, the action of every sentence.
        objects: K names of the objects that they are about.
        prompts: K groups of one sentence for each template.
        embeddings: (K, D) float32, normalised.
    """

    text_model: str
    verbs: tuple[str, ...]
    ings: tuple[str, ...]
    actions: np.ndarray
    objects: tuple[str, ...]
    prompts: tuple[tuple[str, ...], ...]
    embeddings: np.ndarray

    def digest(self) -> str:
        """SHA-256 of everything in it."""
        numbers = np.ascontiguousarray(self.embeddings, dtype="<f4").tobytes()
        return sha256_of_json(
            {
                "kind": KIND,
                "format_version": FORMAT_VERSION,
                "text_model": self.text_model,
                "verbs": self.verbs,
                "ings": self.ings,
                "actions": self.actions.tolist(),
                "objects": self.objects,
                "prompts": self.prompts,
                "text_embeddings": sha256_of_chunks(iter([numbers])),
            }
        )


def read_prompts(path: Path | str) -> NewPrompts:
    """Reads a file that `eoid-cache prompts` wrote.

    Raises:
        InputError: missing, damaged, of another kind or of another format version.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with open_finished(path, None) as file:
            if file.attrs.get("kind") != KIND:
                raise bad_field(path, "kind", KIND, file.attrs.get("kind", "none"))
            found = NewPrompts(
                text_model=str(file.attrs["text_model"]),
                verbs=_texts(file, "verbs/name"),
                ings=_texts(file, "verbs/ing"),
                actions=file["interactions/verb"][()].astype(np.int64),
                objects=_texts(file, "interactions/object"),
                prompts=tuple(tuple(row) for row in file["prompts"].asstr()[()].tolist()),
                embeddings=file["text_embeddings"][()].astype(np.float32),
            )
            seal = file.attrs["fingerprint"]
    except InputError:
        raise
    except DAMAGE as error:
        raise damaged(path, WHAT, error) from None
    if found.digest() != seal:
        raise damaged(path, WHAT, "its fingerprint is another")
    return found


def _texts(file: Any, name: str) -> tuple[str, ...]:
    return tuple(file[name].asstr()[()].tolist())
