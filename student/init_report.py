"""What became of the tensors of a file that a student starts from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INIT = "init.json"


@dataclass(frozen=True)
class Started:
    """The account of a start; every tensor of the file is either used or unused.

    Attributes:
        path: the file.
        kind: what it is.
        used: our names of the parameters that a tensor of the file filled, by its name.
        partly: how many rows were taken, by our name of the part, where it was not all of them.
        unused: why a tensor was left, by its name.
        fresh: our names of the parameters that keep their random start.
    """

    path: Path
    kind: str
    used: dict[str, list[str]]
    partly: dict[str, str]
    unused: dict[str, str]
    fresh: tuple[str, ...]

    def lines(self) -> list[str]:
        """A short account, parts instead of tensors."""
        total = len(self.used) + len(self.unused)
        lines = [f"start: {self.path.name}, {self.kind}: {len(self.used)} of {total} tensors used"]
        taken = [name for names in self.used.values() for name in names]
        lines.append(f"  taken: {_counted(taken, 1)}")
        lines += [f"  {part}: {share}" for part, share in self.partly.items()]
        for reason in dict.fromkeys(self.unused.values()):
            left = [name for name, why in self.unused.items() if why == reason]
            lines.append(f"  left, {reason}: {_counted(left, 2)}")
        if self.fresh:
            lines.append(f"  random: {_counted(self.fresh, 1)}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """The whole account, for a file."""
        return {
            "file": str(self.path),
            "kind": self.kind,
            "used": self.used,
            "partly": self.partly,
            "unused": self.unused,
            "random": list(self.fresh),
        }


def _counted(names: Iterable[str], words: int) -> str:
    """Parts with the number of their tensors: "backbone 265, encoder 72"."""
    parts = Counter(_part(name, words) for name in names)
    return ", ".join(f"{part} {count}" for part, count in parts.items()) or "none"


def _part(name: str, words: int) -> str:
    """The first words of a name, without its last one and without numbers."""
    first = name.split(".")
    kept = [word for word in first[:-1][:words] if not word.isdigit()]
    return ".".join(kept) or name
