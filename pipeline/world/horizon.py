"""What is seen far away outdoors: sky, hills, trees, sea, houses."""

from __future__ import annotations

import math

from pipeline.world.palette import mix, oklch
from pipeline.world.sketch import SIZE, Colour, Sketch
from pipeline.world.stage import WHITE, Stage


def sun(stage: Stage) -> None:
    """A low sun or moon with its glow, in half of the pictures."""
    if stage.dice.chance(0.5):
        return
    x, y = stage.dice.between(8, SIZE - 8), stage.horizon * stage.dice.between(0.15, 0.7)
    colour = oklch(0.96, 0.07, stage.dice.between(70, 105))
    for radius, alpha in ((17, 28), (12, 45), (8, 90), (6, 255)):
        stage.veil((x - radius, y - radius, x + radius, y + radius), colour, alpha)


def stars(stage: Stage) -> None:
    """A few stars in the upper sky."""
    for _ in range(stage.dice.below(14)):
        x, y = stage.dice.between(0, SIZE), stage.dice.between(0, stage.horizon * 0.6)
        stage.veil((x - 0.5, y - 0.5, x + 0.5, y + 0.5), WHITE, 190)


def clouds(stage: Stage) -> None:
    """Flat-bottomed translucent clouds."""
    for _ in range(stage.dice.below(4)):
        x, y = stage.dice.between(-5, SIZE), stage.horizon * stage.dice.between(0.08, 0.6)
        width = stage.dice.between(7, 13)
        for shift, size in ((-1.0, 0.55), (-0.35, 0.85), (0.4, 0.7), (1.0, 0.45)):
            half, high = width * size, width * 0.38 * size
            middle = x + shift * width
            stage.veil((middle - half, y - high, middle + half, y + high * 0.6), WHITE, 105)


def hills(stage: Stage) -> None:
    """Two chains of hills, the farther one paler."""
    for paleness, height in ((0.62, 17.0), (0.32, 9.0)):
        colour = mix(mix(stage.ground, (40, 60, 70), 0.3), stage.sky, paleness)
        phase, length = stage.dice.between(0, 7), stage.dice.between(14, 30)
        crest = [
            complex(x, stage.horizon - height * (0.6 + 0.4 * math.sin(x / length + phase)))
            for x in range(0, SIZE + 4, 4)
        ]
        base = [complex(SIZE + 4, stage.horizon), complex(0, stage.horizon)]
        stage.paint(Sketch().polygon([*crest, *base], colour))


def mountains(stage: Stage) -> None:
    """Pale peaks with light caps."""
    rock = mix(mix(stage.sky, (70, 74, 120), 0.35), stage.ground, 0.15)
    cap = mix(rock, WHITE, 0.55)
    x = stage.dice.between(-20, 10)
    while x < SIZE:
        half, high = stage.dice.between(16, 30), stage.dice.between(12, 27)
        peak = complex(x + half, stage.horizon - high)
        feet = (complex(x, stage.horizon), complex(x + 2 * half, stage.horizon))
        left, right = (peak + (foot - peak) * 0.36 for foot in feet)
        notch = peak + 0.26j * high
        stage.paint(Sketch().polygon((feet[0], peak, feet[1]), rock))
        stage.paint(Sketch().polygon((left, peak, right, notch), cap))
        x += half * stage.dice.between(0.9, 1.7)


def _spread(stage: Stage, most: int) -> list[complex]:
    """Random places along the horizon, from left to right."""
    count = stage.dice.below(most + 1)
    return [complex(x, stage.horizon) for x in
            sorted(stage.dice.between(0, SIZE) for _ in range(count))]  # fmt: skip


def trees(stage: Stage) -> None:
    """Round trees and bushes in the ground's hues."""
    for foot in _spread(stage, 7):
        _tree(stage, foot, mix(stage.ground, (36, 96, 62), stage.dice.between(0.15, 0.5)))


def autumn_trees(stage: Stage) -> None:
    """Round trees from yellow to red."""
    for foot in _spread(stage, 7):
        _tree(stage, foot, oklch(0.7, 0.13, stage.dice.between(35, 95)))


def _tree(stage: Stage, foot: complex, leaves: Colour) -> None:
    size = stage.dice.between(4, 9)
    leaves = mix(leaves, stage.sky, 0.15)
    crown = foot - 1j * size * stage.dice.pick((0.6, 1.9))
    tree = Sketch().limb(foot, crown, size * 0.14, mix((110, 78, 56), stage.sky, 0.2))
    tree.disc(crown, size * 0.8, leaves).disc(crown - size * (0.55 - 0.3j), size * 0.55, leaves)
    tree.disc(crown + size * (0.55 + 0.25j), size * 0.55, leaves)
    tree.layer().disc(crown - size * (0.2 + 0.25j), size * 0.4, mix(leaves, WHITE, 0.18))
    stage.paint(tree)


def pines(stage: Stage) -> None:
    """Fir trees of three tiers."""
    for foot in _spread(stage, 9):
        size = stage.dice.between(6, 13)
        needles = mix(oklch(0.48, 0.05, 175), stage.sky, stage.dice.between(0.15, 0.5))
        tree = Sketch().limb(foot, foot - 0.2j * size, size * 0.07, (96, 74, 70))
        for tier, half in ((0.15, 0.36), (0.42, 0.28), (0.68, 0.2)):
            base = foot - 1j * size * tier
            tree.polygon((base - half * size, base - 0.5j * size, base + half * size), needles)
        stage.paint(tree)


def cacti(stage: Stage) -> None:
    """Saguaros far away."""
    for foot in _spread(stage, 4):
        size = stage.dice.between(7, 12)
        green = mix(oklch(0.6, 0.09, 150), stage.sky, 0.3)
        cactus = Sketch().limb(foot, foot - 1j * size, size * 0.1, green)
        for side, low in ((-0.28, 0.35), (0.26, 0.5)):
            elbow = foot + side * size - 1j * size * low
            cactus.path([foot - 1j * size * low, elbow, elbow - 0.3j * size], size * 0.075, green)
        stage.paint(cactus)


def sea(stage: Stage) -> None:
    """Water up to a far line, glints, and sometimes a sail."""
    far = stage.horizon - stage.dice.between(9, 18)
    water = oklch(0.66, 0.09, stage.dice.between(205, 240))
    corners = (complex(0, far), complex(SIZE, far), complex(SIZE, stage.horizon),
               complex(0, stage.horizon))  # fmt: skip
    stage.paint(Sketch().polygon(corners, water))
    for _ in range(9):
        start = complex(stage.dice.between(0, SIZE), stage.dice.between(far + 1, stage.horizon - 2))
        glint = Sketch().limb(start, start + stage.dice.between(3, 9), 0.4, mix(water, WHITE, 0.4))
        stage.paint(glint)
    foam = [complex(x, stage.horizon + math.sin(x / 5) * 0.8) for x in range(0, SIZE + 6, 6)]
    stage.paint(Sketch().path(foam, 1.0, mix(stage.ground, WHITE, 0.6)))
    if stage.dice.chance(0.4):
        boat = complex(stage.dice.between(8, SIZE - 8), far + 2)
        sail = Sketch().polygon((boat - 7j, boat - 1j, boat + 4 - 1j), (252, 246, 236))
        stage.paint(sail.limb(boat - 3, boat + 4, 0.8, (150, 96, 84)))


def houses(stage: Stage) -> None:
    """A row of pastel houses with windows."""
    x = stage.dice.between(-12, 0)
    while x < SIZE:
        width, height = stage.dice.between(14, 26), stage.dice.between(16, stage.horizon * 0.8)
        wall = mix(oklch(0.8, 0.06, stage.dice.between(0, 360)), stage.sky, 0.35)
        pane = mix(wall, (70, 84, 120), 0.35)
        top = stage.horizon - height
        house = Sketch().polygon(
            (complex(x, stage.horizon), complex(x, top), complex(x + width, top),
             complex(x + width, stage.horizon)), wall)  # fmt: skip
        house.limb(complex(x, top), complex(x + width, top), 0.8, mix(wall, (90, 60, 70), 0.4))
        stage.paint(house)
        columns, rows = max(int(width / 6.5), 1), max(int((height - 5) / 8), 1)
        for column in range(columns):
            for row in range(rows):
                corner = complex(x + width * (column + 0.28) / columns, top + 3.5 + 8 * row)
                across = width * 0.44 / columns
                window = (corner, corner + across, corner + across + 4.2j, corner + 4.2j)
                stage.paint(Sketch().polygon(window, pane))
        x += width + stage.dice.pick((0.0, 0.0, 5.0))
