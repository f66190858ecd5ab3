"""Colour palettes for toy images, with small random variations in OKLCH."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.toy.canvas import Colour
from pipeline.toy.rng import ScalarRNG

# Lightness, chroma, hue in degrees.
OklchColour = tuple[float, float, float]

# Colours of every palette for clothes and objects.
PALETTES: tuple[tuple[OklchColour, ...], ...] = (
    # picnic: tomato, mustard, teal, cream, navy
    ((0.62, 0.19, 28), (0.80, 0.14, 85), (0.60, 0.09, 195), (0.92, 0.04, 90), (0.38, 0.08, 262)),
    # candy: raspberry, apricot, mint, sky, plum
    ((0.62, 0.20, 5), (0.82, 0.11, 60), (0.84, 0.09, 165), (0.75, 0.10, 235), (0.45, 0.12, 320)),
    # forest: moss, rust, gold, ivory, pine
    ((0.62, 0.11, 125), (0.58, 0.14, 45), (0.82, 0.13, 90), (0.93, 0.03, 95), (0.40, 0.07, 160)),
    # harbour: red, white, ocean, sand, ink
    ((0.58, 0.20, 25), (0.95, 0.01, 240), (0.56, 0.12, 245), (0.84, 0.06, 80), (0.32, 0.06, 265)),
    # sherbet: coral, lemon, lilac, aqua, violet
    ((0.72, 0.15, 30), (0.91, 0.12, 100), (0.74, 0.11, 305), (0.80, 0.09, 200), (0.50, 0.16, 290)),
    # autumn: burnt orange, wine, ochre, slate, cream
    ((0.68, 0.16, 52), (0.45, 0.13, 12), (0.75, 0.12, 78), (0.50, 0.05, 235), (0.91, 0.04, 80)),
    # tropics: turquoise, hot pink, sun, leaf, royal
    ((0.74, 0.11, 190), (0.66, 0.21, 355), (0.86, 0.16, 92), (0.68, 0.15, 140), (0.46, 0.16, 268)),
    # print shop: vermilion, cobalt, yellow, grey, black
    ((0.64, 0.21, 35), (0.52, 0.17, 258), (0.88, 0.16, 95), (0.72, 0.02, 250), (0.33, 0.02, 280)),
)
SKINS = ((0.87, 0.05, 62), (0.80, 0.07, 60), (0.71, 0.08, 58), (0.58, 0.08, 52), (0.46, 0.07, 48))
HAIRS = ((0.30, 0.03, 50), (0.42, 0.06, 50), (0.78, 0.11, 85), (0.56, 0.14, 45), (0.22, 0.01, 280),
         (0.82, 0.01, 90))  # fmt: skip
COATS = ((0.52, 0.08, 50), (0.38, 0.06, 45), (0.76, 0.09, 75), (0.90, 0.02, 85), (0.62, 0.02, 260),
         (0.62, 0.11, 52))  # fmt: skip
WOODS = ((0.62, 0.09, 65), (0.50, 0.08, 55), (0.74, 0.08, 75))
CARDBOARD = (0.74, 0.07, 72)


def oklch_to_rgb(lightness: float, chroma: float, hue: float) -> Colour:
    """sRGB (0-255) of an OKLCH colour (hue in degrees), clipped to the gamut.

    OKLCH is OKLab in polar coordinates; the matrices are those of OKLab's definition.
    """
    a = chroma * math.cos(math.radians(hue))
    b = chroma * math.sin(math.radians(hue))
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        _to_srgb_byte(4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short),
        _to_srgb_byte(-1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short),
        _to_srgb_byte(-0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short),
    )


def _to_srgb_byte(linear: float) -> int:
    linear = min(max(linear, 0.0), 1.0)
    encoded = 12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055
    return round(255 * encoded)


def blend(first: Colour, second: Colour, share: float) -> Colour:
    """Mix of two colours, with `share` of the second one."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


@dataclass(frozen=True)
class Palette:
    """Colours of one image.

    Attributes:
        colours: OKLCH colours of clothes and objects.
    """

    colours: tuple[OklchColour, ...]

    def accent(self, rng: ScalarRNG) -> Colour:
        """A random colour of the palette with a small variation."""
        return self.shade(rng, rng.choice(self.colours))

    def accents(self, rng: ScalarRNG, count: int) -> list[Colour]:
        """Different random colours of the palette with small variations."""
        return [self.shade(rng, colour) for colour in rng.shuffled(self.colours)[:count]]

    def natural(self, rng: ScalarRNG, family: tuple[OklchColour, ...]) -> Colour:
        """A random colour of a natural family (`SKINS`, `COATS`, ...) with a small variation."""
        return self.shade(rng, rng.choice(family))

    def shade(self, rng: ScalarRNG, colour: OklchColour) -> Colour:
        """An OKLCH colour with a small variation."""
        lightness, chroma, hue = colour
        return oklch_to_rgb(
            lightness + rng.uniform(-0.04, 0.04),
            chroma * rng.uniform(0.85, 1.1),
            hue + rng.uniform(-9, 9),
        )
