"""The one error a user can cause."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input or wrong use: one line that names the thing, what was expected and what came.

    Commands print the message on stderr and exit with code 2.
    """


def bad_field(file: object, where: str, expected: str, found: object) -> InputError:
    """The standard sentence for a wrong entry of a file.

    Args:
        file: the file's path or name.
        where: the field inside it, with the image where there is one.
        expected: what would have been right.
        found: what stands there (shown shortened).
    """
    shown = found if isinstance(found, str) else repr(found)
    if len(shown) > 80:
        shown = shown[:77] + "..."
    return InputError(f"{file}: {where}: expected {expected}, found {shown}")
