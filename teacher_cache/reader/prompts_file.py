"""Reads prompts files: embedded sentences about new actions and objects.

`eoid-cache prompts` writes them. A student with a text head gets its weights for further classes
from such a file, without training.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import sha256_of_chunks, sha256_of_json
from teacher_cache.reader.format import FORMAT_VERSION
from teacher_cache.reader.shard import open_cache_file, read_prompts, read_strings

FILE_KIND = "eoid-prompts"
FILE_DESCRIPTION = "a prompts file"


@dataclass(frozen=True, eq=False)
class ActionPrompts:
    """Embedded prompts of A verbs, each with one or more objects: K interactions in all.

    Attributes:
        text_model: identifies the CLIP that embedded them; see `TeacherCache.text_model`.
        verbs, verb_ings: names of the A verbs and their forms in prompts ("jumping over").
        actions: (K,) int64, index into `verbs` for each interaction.
        objects: object name of each interaction, which may be one that the cache lacks.
        prompts: one sentence per template for each interaction.
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
        """SHA-256 of all fields."""
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
    """Reads a file that `eoid-cache prompts` wrote and checks its digest.

    Raises:
        InputError: the file is missing, damaged, of another kind or of another format version.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with open_cache_file(path, None, FILE_DESCRIPTION) as file:
        if file.attrs.get("kind") != FILE_KIND:
            raise bad_field(path, "kind", FILE_KIND, file.attrs.get("kind", "none"))
        prompts = ActionPrompts(
            text_model=str(file.attrs["text_model"]),
            verbs=tuple(read_strings(file, "verbs/name")),
            verb_ings=tuple(read_strings(file, "verbs/ing")),
            actions=file["interactions/verb"][()].astype(np.int64),
            objects=tuple(read_strings(file, "interactions/object")),
            prompts=read_prompts(file),
            embeddings=file["text_embeddings"][()].astype(np.float32),
        )
        if prompts.digest() != file.attrs["fingerprint"]:
            raise ValueError("its fingerprint does not match its content")
        counts = [len(each) for each in (prompts.objects, prompts.prompts, prompts.embeddings)]
        if (
            prompts.embeddings.ndim != 2
            or prompts.actions.shape != (counts[0],)
            or set(counts) != {counts[0]}
            or not set(prompts.actions.tolist()) <= set(range(len(prompts.verbs)))
            or len(prompts.verb_ings) != len(prompts.verbs)
            or not np.isfinite(prompts.embeddings).all()
        ):
            raise ValueError("its arrays do not fit each other, or are not finite")
    return prompts
