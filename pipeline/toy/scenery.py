"""Scenery behind people: sky, hills, trees, houses, ground, rooms."""

from __future__ import annotations

import math

from pipeline.toy.canvas import SIZE, WHITE, Colour, Sketch, Stage
from pipeline.toy.palette import mix, oklch


def paving(stage: Stage) -> None:
    """A kerb and joints that run towards the horizon."""
    joint = mix(stage.front, (60, 56, 70), 0.16)
    edge = complex(0, stage.horizon + 0.8)
    stage.paint(Sketch().limb(edge, edge + SIZE, 0.8, mix(stage.ground, WHITE, 0.4)))
    vanishing = complex(SIZE / 2 + stage.dice.between(-30, 30), stage.horizon - 60)
    for number in range(-4, 13):
        front = complex(number * 16, SIZE)
        share = (stage.horizon + 2 - SIZE) / (vanishing.imag - SIZE)
        stage.paint(Sketch().limb(front, front + (vanishing - front) * share, 0.35, joint))
    for share in (0.14, 0.36, 0.66):
        row = complex(0, stage.horizon + (SIZE - stage.horizon) * share)
        stage.paint(Sketch().limb(row, row + SIZE, 0.35, joint))


def flowers(stage: Stage) -> None:
    """Tufts of grass and small flowers."""
    blade = mix(stage.front, (30, 96, 50), 0.3)
    petal = oklch(0.88, 0.11, stage.dice.pick((95, 10, 320, 60)))
    for _ in range(10 + stage.dice.below(14)):
        point = stage.on_ground()
        size = 1.2 + 1.6 * stage.nearness(point)
        for tilt in (-0.5, 0.0, 0.5):
            stage.paint(Sketch().limb(point, point + size * (tilt - 1j), 0.35, blade))
        if stage.dice.chance(0.35):
            stage.paint(Sketch().disc(point - 1.2j * size, 0.35 * size, petal))


def leaves(stage: Stage) -> None:
    """Fallen leaves."""
    for _ in range(14 + stage.dice.below(14)):
        point = stage.on_ground()
        half = complex(0.6 + 0.7 * stage.nearness(point), stage.dice.between(-0.5, 0.5))
        colour = oklch(0.66, 0.14, stage.dice.between(30, 85))
        stage.paint(Sketch().limb(point - half, point + half, 0.6, colour))


def pebbles(stage: Stage) -> None:
    """Small stones with a light side."""
    for _ in range(5 + stage.dice.below(9)):
        point = stage.on_ground()
        size = 0.6 + 1.1 * stage.nearness(point)
        stone = mix(stage.front, (90, 84, 100), stage.dice.between(0.15, 0.4))
        stage.paint(Sketch().limb(point - size, point + size, size * 0.6, stone))
        light = point - 0.3j * size
        stage.paint(Sketch().limb(light - size * 0.6, light, size * 0.3, mix(stone, WHITE, 0.3)))


def drifts(stage: Stage) -> None:
    """Soft heaps of snow."""
    for _ in range(4):
        point = stage.on_ground()
        half = stage.dice.between(8, 20)
        box = (point.real - half, point.imag - 2, point.real + half, point.imag + 2.5)
        stage.veil(box, WHITE, 120)


def tufts(stage: Stage) -> None:
    """High grass in front of people and things."""
    blade = mix(stage.front, (48, 92, 58), 0.42)
    for _ in range(stage.dice.below(4)):
        point = stage.on_ground()
        size = 3.5 + 4 * stage.nearness(point)
        for tilt in (-0.55, -0.3, -0.1, 0.15, 0.35, 0.6):
            tip = point + size * (tilt - 1j + 0.4j * abs(tilt))
            stage.paint(Sketch().limb(point + size * tilt * 0.4, tip, 0.75, blade, 0.4))


def stones(stage: Stage) -> None:
    """A few larger stones in front of people and things."""
    for _ in range(stage.dice.below(3)):
        point = stage.on_ground()
        size = 1.8 + 2.2 * stage.nearness(point)
        stone = mix(stage.front, (104, 98, 116), 0.45)
        rock = Sketch().limb(point - size, point + size * 0.8, size * 0.8, stone, 0.7)
        rock.limb(point - size - 0.3j * size, point - 0.35j * size, size * 0.3,
                  mix(stone, WHITE, 0.25))  # fmt: skip
        stage.paint(rock)


def posts(stage: Stage) -> None:
    """A thin post in front of people and things, in a third of the pictures."""
    if stage.dice.chance(0.67):
        return
    foot = complex(stage.dice.between(4, SIZE - 4), stage.dice.between(SIZE - 12, SIZE - 2))
    colour = mix(stage.front, (50, 56, 76), 0.7)
    top = foot - 1j * stage.dice.between(26, 44)
    post = Sketch().limb(foot, top, 1.0, colour).limb(foot - 1.6, foot + 1.6, 1.1, colour)
    stage.paint(post.limb(top, top - 1j, 1.7, mix(colour, WHITE, 0.5)))


def flakes(stage: Stage) -> None:
    """Snow in front of people and things."""
    for _ in range(stage.dice.below(36)):
        x, y = stage.dice.between(0, SIZE), stage.dice.between(0, SIZE)
        size = stage.dice.between(0.4, 0.8)
        stage.veil((x - size, y - size, x + size, y + size), WHITE, 210)


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


def wallpaper(stage: Stage) -> None:
    """Broad stripes and a skirting board."""
    stripe = mix(stage.sky, WHITE, stage.dice.between(0.12, 0.3))
    step = stage.dice.pick((8, 12, 16))
    for x in range(0, SIZE, step):
        end = complex(x + step / 2, stage.horizon)
        corners = (complex(x, 0), complex(x + step / 2, 0), end, complex(x, stage.horizon))
        stage.paint(Sketch().polygon(corners, stripe))
    board = complex(0, stage.horizon - 1.2)
    stage.paint(Sketch().limb(board, board + SIZE, 1.4, mix(stage.sky, WHITE, 0.6)))


def windows(stage: Stage) -> None:
    """A window or framed pictures on the wall."""
    x = stage.dice.between(2, 14)
    while x < SIZE - 16:
        width, height = stage.dice.between(12, 24), stage.dice.between(12, stage.horizon * 0.55)
        top = stage.dice.between(3, max(4.0, stage.horizon * 0.8 - height))
        corner = complex(x, top)
        inside = oklch(0.88, 0.06, stage.dice.pick((230, 230, 200, 60, 20)))
        pane = (corner, corner + width, corner + width + 1j * height, corner + 1j * height)
        stage.paint(Sketch().polygon(pane, (250, 246, 238), 1.0))
        stage.paint(Sketch().polygon(pane, inside))
        if stage.dice.chance(0.5):
            cross = Sketch().limb(corner + width / 2, corner + width / 2 + 1j * height, 0.5, WHITE)
            stage.paint(cross.limb(corner + 0.5j * height, corner + width + 0.5j * height, 0.5,
                                   WHITE))  # fmt: skip
        else:
            hill = mix(inside, stage.ground, 0.6)
            stage.paint(Sketch().polygon((pane[3], pane[3] + width * (0.4 - 0.2j) - 2j, pane[2]),
                                         hill))  # fmt: skip
        x += width + stage.dice.between(10, 34)


def planks(stage: Stage) -> None:
    """Floorboards that widen towards the viewer."""
    seam = mix(stage.front, (70, 40, 30), 0.22)
    for number in range(1, 7):
        row = complex(0, stage.horizon + (SIZE - stage.horizon) * (number / 7) ** 1.5)
        stage.paint(Sketch().limb(row, row + SIZE, 0.3, seam))


def rug(stage: Stage) -> None:
    """An oval rug, in half of the rooms."""
    if stage.dice.chance(0.5):
        return
    x, half = stage.dice.between(30, 98), stage.dice.between(26, 44)
    y, high = (stage.horizon + SIZE) / 2 + 4, (SIZE - stage.horizon) * 0.28
    hue = stage.dice.between(0, 360)
    for share, lightness in ((1.0, 0.66), (0.86, 0.84), (0.76, 0.72)):
        box = (x - half * share, y - high * share, x + half * share, y + high * share)
        stage.veil(box, oklch(lightness, 0.07, hue), 170)


def wallbars(stage: Stage) -> None:
    """Wall bars and a stripe along a gym's wall."""
    stripe = complex(0, stage.horizon * stage.dice.between(0.3, 0.7))
    colour = oklch(0.72, 0.11, stage.dice.between(0, 360))
    stage.paint(Sketch().limb(stripe, stripe + SIZE, 2.0, mix(colour, stage.sky, 0.3)))
    wood = mix(oklch(0.7, 0.09, 65), stage.sky, 0.25)
    for _ in range(stage.dice.below(3)):
        x, top = stage.dice.between(4, SIZE - 24), stage.horizon * 0.2
        bars = Sketch()
        for side in (0, 20):
            bars.limb(complex(x + side, top), complex(x + side, stage.horizon), 0.9, wood)
        for rung in range(6):
            row = complex(x, top + (stage.horizon - top) * (rung + 0.5) / 6)
            bars.limb(row, row + 20, 0.6, wood)
        stage.paint(bars)
    edge = complex(0, stage.horizon)
    stage.paint(Sketch().limb(edge, edge + SIZE, 1.0, mix(stage.ground, (60, 50, 60), 0.3)))


def court(stage: Stage) -> None:
    """Lines on a gym's floor."""
    line = mix(oklch(0.75, 0.12, stage.dice.between(0, 360)), WHITE, 0.2)
    row = complex(0, stage.horizon + (SIZE - stage.horizon) * stage.dice.between(0.15, 0.4))
    stage.paint(Sketch().limb(row, row + SIZE, 0.7, line))
    front = complex(stage.dice.between(10, 118), SIZE)
    back = complex(SIZE / 2 + (front.real - SIZE / 2) * 0.5, row.imag)
    stage.paint(Sketch().limb(front, back, 0.7, line))
