"""Wording of messages: numbers with their nouns, durations and sizes."""

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


def format_duration(seconds: float) -> str:
    """A duration in one or two units: "45 s", "12 min", "2 h 10 min", "3 d 4 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def format_bytes(count: float) -> str:
    """A number of bytes in decimal units, with two digits at least: "4.2 MB", "812 GB"."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 999.5 and len(units) > 1:
        count /= 1000
        del units[0]
    digits = 1 if count < 9.95 and units[0] != "B" else 0
    return f"{count:.{digits}f} {units[0]}"
