"""Wording of messages: numbers with their nouns."""

from __future__ import annotations

import re

# Endings of plurals and of their singulars; the first one that fits applies.
SINGULARS = (("ies", "y"), ("xes", "x"), ("sses", "ss"), ("s", ""))
PLURAL = re.compile(rf"\b(\w+?)({'|'.join(plural for plural, _ in SINGULARS)})\b")


def count_noun(count: int, nouns: str) -> str:
    """A number and what is counted: "3 boxes without area", "1 box without area".

    Args:
        count: the number.
        nouns: what is counted, in the plural: the first word that ends in s.
    """
    if count == 1:
        singulars = dict(SINGULARS)
        nouns = PLURAL.sub(lambda word: word[1] + singulars[word[2]], nouns, count=1)
    return f"{count} {nouns}"
