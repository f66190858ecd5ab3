"""Colours of the report in light and dark mode, and hatches, line styles and markers.

The colours of one chart can be told apart with any kind of colour blindness and have enough
contrast to the background; tests compute both. Hatches, line styles and markers make the same
distinctions without colour. All light colours are different, because the SVGs are drawn with them
and each is then replaced by the CSS variable of its name.
"""

from __future__ import annotations

LIGHT: dict[str, str] = {
    "page": "#f6f5f1",
    "card": "#ffffff",
    "text": "#1c2128",
    "muted": "#5c6470",
    "grid": "#dcdad3",
    "accent": "#0072b2",
    "star_background": "#f0e442",
    "star_text": "#1c1c00",
    "ground_truth": "#1d2128",
    "distilled": "#0067a8",
    "control": "#d55e00",
    "all_labels": "#35414f",
    "teacher": "#1fa36c",
    "predictions": "#a5739a",
    "seen": "#7389a3",
    "unseen": "#b86b00",
    "wrong_verb": "#1b3a8c",
    "wrong_object": "#b87e00",
    "localisation": "#4377f2",
    "duplicate": "#079a6c",
    "wrong_pair": "#a07fce",
    "background": "#62596a",
}
DARK: dict[str, str] = {
    "page": "#12151a",
    "card": "#1b2027",
    "text": "#e9ecf1",
    "muted": "#9ba5b3",
    "grid": "#333b46",
    "accent": "#56b4e9",
    "star_background": "#f0e442",
    "star_text": "#1c1c00",
    "ground_truth": "#e9ecf1",
    "distilled": "#3fa0e0",
    "control": "#f08a3c",
    "all_labels": "#eef1f5",
    "teacher": "#14d496",
    "predictions": "#c6a6c6",
    "seen": "#7f97b2",
    "unseen": "#f0b429",
    "wrong_verb": "#4a6df0",
    "wrong_object": "#e8c23a",
    "localisation": "#8fc8ff",
    "duplicate": "#2aa457",
    "wrong_pair": "#c66f9f",
    "background": "#dfe6d0",
}
HATCHES = {
    "control": "////",
    "teacher": "..",
    "predictions": "xxxx",
    "unseen": "////",
    "wrong_object": "////",
    "localisation": "..",
    "duplicate": "\\\\\\\\",
    "wrong_pair": "xxxx",
    "background": "----",
}
LINE_STYLES = {
    "distilled": "-",
    "control": "--",
    "all_labels": ":",
    "teacher": "-.",
    "predictions": (0, (3, 1, 1, 1, 1, 1)),
}
MARKERS = {
    "distilled": "o",
    "control": "s",
    "all_labels": "^",
    "teacher": "D",
    "predictions": "v",
    "seen": "o",
    "unseen": "*",
}


def css_variable(name: str) -> str:
    """Name of the CSS variable of a colour."""
    return "--" + name.replace("_", "-")


def css_declarations(colours: dict[str, str]) -> str:
    """CSS declarations of the variables of all colours."""
    return " ".join(f"{css_variable(name)}: {colour};" for name, colour in colours.items())
