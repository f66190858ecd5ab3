"""The word-level tokenizer of the toy dataset's CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from msgspec import Struct
from torch import Tensor

from pipeline.utils.errors import InputError, bad_field
from pipeline.utils.files import write_json
from pipeline.utils.schema import read_json_as

PAD = 0
# Characters of a text that an error contains.
MAX_SHOWN = 80


class _WordsFile(Struct):
    words: list[str]
    context_length: int


class WordTokenizer:
    """Maps each word of a text to one token id, with start and end within `context_length`.

    Padding is 0; then come the words, start of text and end of text. The end of text has the
    largest id, because open_clip takes a text's embedding at the position of the largest id.
    """

    def __init__(self, words: Sequence[str], context_length: int) -> None:
        self.words = tuple(words)
        self.context_length = context_length
        self._token_ids = {word: index for index, word in enumerate(self.words, start=1)}
        self.sot_token_id = len(self.words) + 1
        self.eot_token_id = len(self.words) + 2

    @property
    def vocab_size(self) -> int:
        return self.eot_token_id + 1

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """N texts -> (N, context_length) int64 token ids, padded.

        Raises:
            InputError: a word is unknown, or a text is too long.
        """
        texts = [texts] if isinstance(texts, str) else texts
        length = context_length or self.context_length
        rows = torch.full((len(texts), length), PAD, dtype=torch.int64)
        for row, text in zip(rows, texts, strict=True):
            tokens = [
                self.sot_token_id,
                *(self._token_id(word, text) for word in text.split()),
                self.eot_token_id,
            ]
            if len(tokens) > length:
                raise bad_field(
                    f"prompt {_shorten(text)}",
                    "length",
                    f"at most {length - 2} words",
                    f"{len(tokens) - 2}",
                )
            row[: len(tokens)] = torch.tensor(tokens)
        return rows

    def _token_id(self, word: str, text: str) -> int:
        if word not in self._token_ids:
            known = ", ".join(self.words)
            raise InputError(
                f"prompt {_shorten(text)}: expected only the words {known}, found {word!r}"
            )
        return self._token_ids[word]

    def save(self, path: Path) -> None:
        """Writes words and context length as JSON."""
        write_json(path, {"words": self.words, "context_length": self.context_length})

    @classmethod
    def load(cls, path: Path) -> WordTokenizer:
        """Reads what `save` wrote.

        Raises:
            InputError: the file is missing or not of this form.
        """
        stored = read_json_as(path, _WordsFile)
        return cls(stored.words, stored.context_length)


def _shorten(text: str) -> str:
    return repr(text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}...")
