"""The exception for bad input, which commands print as one line."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input or wrong use; the message is one line that names the item, expected and found.

    Commands print the message on stderr and exit with code 2.
    """


def bad_field(file: object, where: str, expected: str, found: object) -> InputError:
    """The error for a wrong field of a file: "FILE: FIELD: expected ..., found ...".

    Args:
        file: path or name of the file.
        where: the field, with the image or entry it belongs to.
        expected: description of valid values.
        found: the value or a description of it, shortened to 80 characters.
    """
    try:
        shown = found if isinstance(found, str) else repr(found)
    # Pickles and TOML files can have integers with more digits than Python prints.
    except ValueError:
        shown = "a number with thousands of digits"
    if len(shown) > 80:
        shown = shown[:77] + "..."
    return InputError(f"{file}: {where}: expected {expected}, found {shown}")
