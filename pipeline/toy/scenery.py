"""Scenery of toy images: sky, hills, trees, houses, ground and rooms.

Every public function draws one kind of scenery onto a canvas.
"""

from __future__ import annotations

import math

from pipeline.toy.canvas import IMAGE_SIZE, WHITE, Canvas, Colour, Sketch
from pipeline.toy.palette import blend, oklch_to_rgb


def paving(canvas: Canvas) -> None:
    """A kerb and joints that run towards the horizon."""
    joint = blend(canvas.front, (60, 56, 70), 0.16)
    edge = complex(0, canvas.horizon + 0.8)
    canvas.paint(Sketch().line(edge, edge + IMAGE_SIZE, 0.8, blend(canvas.ground, WHITE, 0.4)))
    vanishing = complex(IMAGE_SIZE / 2 + canvas.rng.uniform(-30, 30), canvas.horizon - 60)
    for number in range(-4, 13):
        front = complex(number * 16, IMAGE_SIZE)
        share = (canvas.horizon + 2 - IMAGE_SIZE) / (vanishing.imag - IMAGE_SIZE)
        canvas.paint(Sketch().line(front, front + (vanishing - front) * share, 0.35, joint))
    for share in (0.14, 0.36, 0.66):
        row = complex(0, canvas.horizon + (IMAGE_SIZE - canvas.horizon) * share)
        canvas.paint(Sketch().line(row, row + IMAGE_SIZE, 0.35, joint))


def flowers(canvas: Canvas) -> None:
    """Tufts of grass and small flowers."""
    blade = blend(canvas.front, (30, 96, 50), 0.3)
    petal = oklch_to_rgb(0.88, 0.11, canvas.rng.choice((95, 10, 320, 60)))
    for _ in range(10 + canvas.rng.randrange(14)):
        point = canvas.random_ground_point()
        size = 1.2 + 1.6 * canvas.nearness(point)
        for tilt in (-0.5, 0.0, 0.5):
            canvas.paint(Sketch().line(point, point + size * (tilt - 1j), 0.35, blade))
        if canvas.rng.bernoulli(0.35):
            canvas.paint(Sketch().disc(point - 1.2j * size, 0.35 * size, petal))


def leaves(canvas: Canvas) -> None:
    """Fallen leaves."""
    for _ in range(14 + canvas.rng.randrange(14)):
        point = canvas.random_ground_point()
        half = complex(0.6 + 0.7 * canvas.nearness(point), canvas.rng.uniform(-0.5, 0.5))
        colour = oklch_to_rgb(0.66, 0.14, canvas.rng.uniform(30, 85))
        canvas.paint(Sketch().line(point - half, point + half, 0.6, colour))


def pebbles(canvas: Canvas) -> None:
    """Small stones with a light side."""
    for _ in range(5 + canvas.rng.randrange(9)):
        point = canvas.random_ground_point()
        size = 0.6 + 1.1 * canvas.nearness(point)
        stone = blend(canvas.front, (90, 84, 100), canvas.rng.uniform(0.15, 0.4))
        canvas.paint(Sketch().line(point - size, point + size, size * 0.6, stone))
        light = point - 0.3j * size
        canvas.paint(Sketch().line(light - size * 0.6, light, size * 0.3, blend(stone, WHITE, 0.3)))


def drifts(canvas: Canvas) -> None:
    """Soft snowdrifts."""
    for _ in range(4):
        point = canvas.random_ground_point()
        half = canvas.rng.uniform(8, 20)
        box = (point.real - half, point.imag - 2, point.real + half, point.imag + 2.5)
        canvas.translucent_ellipse(box, WHITE, 120)


def tufts(canvas: Canvas) -> None:
    """Tall grass in front of people and objects."""
    blade = blend(canvas.front, (48, 92, 58), 0.42)
    for _ in range(canvas.rng.randrange(4)):
        point = canvas.random_ground_point()
        size = 3.5 + 4 * canvas.nearness(point)
        for tilt in (-0.55, -0.3, -0.1, 0.15, 0.35, 0.6):
            tip = point + size * (tilt - 1j + 0.4j * abs(tilt))
            canvas.paint(Sketch().line(point + size * tilt * 0.4, tip, 0.75, blade, 0.4))


def stones(canvas: Canvas) -> None:
    """A few larger stones in front of people and objects."""
    for _ in range(canvas.rng.randrange(3)):
        point = canvas.random_ground_point()
        size = 1.8 + 2.2 * canvas.nearness(point)
        stone = blend(canvas.front, (104, 98, 116), 0.45)
        rock = Sketch().line(point - size, point + size * 0.8, size * 0.8, stone, 0.7)
        rock.line(point - size - 0.3j * size, point - 0.35j * size, size * 0.3,
                  blend(stone, WHITE, 0.25))  # fmt: skip
        canvas.paint(rock)


def posts(canvas: Canvas) -> None:
    """A thin post in front of people and objects, in a third of the images."""
    if canvas.rng.bernoulli(0.67):
        return
    foot = complex(
        canvas.rng.uniform(4, IMAGE_SIZE - 4), canvas.rng.uniform(IMAGE_SIZE - 12, IMAGE_SIZE - 2)
    )
    colour = blend(canvas.front, (50, 56, 76), 0.7)
    top = foot - 1j * canvas.rng.uniform(26, 44)
    post = Sketch().line(foot, top, 1.0, colour).line(foot - 1.6, foot + 1.6, 1.1, colour)
    canvas.paint(post.line(top, top - 1j, 1.7, blend(colour, WHITE, 0.5)))


def flakes(canvas: Canvas) -> None:
    """Falling snow in front of people and objects."""
    for _ in range(canvas.rng.randrange(36)):
        x, y = canvas.rng.uniform(0, IMAGE_SIZE), canvas.rng.uniform(0, IMAGE_SIZE)
        size = canvas.rng.uniform(0.4, 0.8)
        canvas.translucent_ellipse((x - size, y - size, x + size, y + size), WHITE, 210)


def sun(canvas: Canvas) -> None:
    """A low sun or moon with its glow, in half of the images."""
    if canvas.rng.bernoulli(0.5):
        return
    x, y = canvas.rng.uniform(8, IMAGE_SIZE - 8), canvas.horizon * canvas.rng.uniform(0.15, 0.7)
    colour = oklch_to_rgb(0.96, 0.07, canvas.rng.uniform(70, 105))
    for radius, alpha in ((17, 28), (12, 45), (8, 90), (6, 255)):
        canvas.translucent_ellipse((x - radius, y - radius, x + radius, y + radius), colour, alpha)


def stars(canvas: Canvas) -> None:
    """A few stars in the upper sky."""
    for _ in range(canvas.rng.randrange(14)):
        x, y = canvas.rng.uniform(0, IMAGE_SIZE), canvas.rng.uniform(0, canvas.horizon * 0.6)
        canvas.translucent_ellipse((x - 0.5, y - 0.5, x + 0.5, y + 0.5), WHITE, 190)


def clouds(canvas: Canvas) -> None:
    """Flat-bottomed translucent clouds."""
    for _ in range(canvas.rng.randrange(4)):
        x, y = canvas.rng.uniform(-5, IMAGE_SIZE), canvas.horizon * canvas.rng.uniform(0.08, 0.6)
        width = canvas.rng.uniform(7, 13)
        for shift, size in ((-1.0, 0.55), (-0.35, 0.85), (0.4, 0.7), (1.0, 0.45)):
            half, high = width * size, width * 0.38 * size
            middle = x + shift * width
            canvas.translucent_ellipse(
                (middle - half, y - high, middle + half, y + high * 0.6), WHITE, 105
            )


def hills(canvas: Canvas) -> None:
    """Two chains of hills, the farther one paler."""
    for paleness, height in ((0.62, 17.0), (0.32, 9.0)):
        colour = blend(blend(canvas.ground, (40, 60, 70), 0.3), canvas.sky, paleness)
        phase, length = canvas.rng.uniform(0, 7), canvas.rng.uniform(14, 30)
        crest = [
            complex(x, canvas.horizon - height * (0.6 + 0.4 * math.sin(x / length + phase)))
            for x in range(0, IMAGE_SIZE + 4, 4)
        ]
        base = [complex(IMAGE_SIZE + 4, canvas.horizon), complex(0, canvas.horizon)]
        canvas.paint(Sketch().polygon([*crest, *base], colour))


def mountains(canvas: Canvas) -> None:
    """Pale peaks with light caps."""
    rock = blend(blend(canvas.sky, (70, 74, 120), 0.35), canvas.ground, 0.15)
    cap = blend(rock, WHITE, 0.55)
    x = canvas.rng.uniform(-20, 10)
    while x < IMAGE_SIZE:
        half, high = canvas.rng.uniform(16, 30), canvas.rng.uniform(12, 27)
        peak = complex(x + half, canvas.horizon - high)
        feet = (complex(x, canvas.horizon), complex(x + 2 * half, canvas.horizon))
        left, right = (peak + (foot - peak) * 0.36 for foot in feet)
        notch = peak + 0.26j * high
        canvas.paint(Sketch().polygon((feet[0], peak, feet[1]), rock))
        canvas.paint(Sketch().polygon((left, peak, right, notch), cap))
        x += half * canvas.rng.uniform(0.9, 1.7)


def _spread(canvas: Canvas, max_count: int) -> list[complex]:
    """Up to `max_count` random points on the horizon, from left to right."""
    count = canvas.rng.randrange(max_count + 1)
    return [complex(x, canvas.horizon) for x in
            sorted(canvas.rng.uniform(0, IMAGE_SIZE) for _ in range(count))]  # fmt: skip


def trees(canvas: Canvas) -> None:
    """Round trees and bushes in the ground's hues."""
    for foot in _spread(canvas, 7):
        _tree(canvas, foot, blend(canvas.ground, (36, 96, 62), canvas.rng.uniform(0.15, 0.5)))


def autumn_trees(canvas: Canvas) -> None:
    """Round trees from yellow to red."""
    for foot in _spread(canvas, 7):
        _tree(canvas, foot, oklch_to_rgb(0.7, 0.13, canvas.rng.uniform(35, 95)))


def _tree(canvas: Canvas, foot: complex, leaves: Colour) -> None:
    size = canvas.rng.uniform(4, 9)
    leaves = blend(leaves, canvas.sky, 0.15)
    crown = foot - 1j * size * canvas.rng.choice((0.6, 1.9))
    tree = Sketch().line(foot, crown, size * 0.14, blend((110, 78, 56), canvas.sky, 0.2))
    tree.disc(crown, size * 0.8, leaves).disc(crown - size * (0.55 - 0.3j), size * 0.55, leaves)
    tree.disc(crown + size * (0.55 + 0.25j), size * 0.55, leaves)
    tree.new_layer().disc(crown - size * (0.2 + 0.25j), size * 0.4, blend(leaves, WHITE, 0.18))
    canvas.paint(tree)


def pines(canvas: Canvas) -> None:
    """Fir trees of three tiers."""
    for foot in _spread(canvas, 9):
        size = canvas.rng.uniform(6, 13)
        needles = blend(oklch_to_rgb(0.48, 0.05, 175), canvas.sky, canvas.rng.uniform(0.15, 0.5))
        tree = Sketch().line(foot, foot - 0.2j * size, size * 0.07, (96, 74, 70))
        for tier, half in ((0.15, 0.36), (0.42, 0.28), (0.68, 0.2)):
            base = foot - 1j * size * tier
            tree.polygon((base - half * size, base - 0.5j * size, base + half * size), needles)
        canvas.paint(tree)


def cacti(canvas: Canvas) -> None:
    """Distant saguaro cacti."""
    for foot in _spread(canvas, 4):
        size = canvas.rng.uniform(7, 12)
        green = blend(oklch_to_rgb(0.6, 0.09, 150), canvas.sky, 0.3)
        cactus = Sketch().line(foot, foot - 1j * size, size * 0.1, green)
        for side, low in ((-0.28, 0.35), (0.26, 0.5)):
            elbow = foot + side * size - 1j * size * low
            cactus.path([foot - 1j * size * low, elbow, elbow - 0.3j * size], size * 0.075, green)
        canvas.paint(cactus)


def sea(canvas: Canvas) -> None:
    """Water with glints, and sometimes a sailing boat."""
    far = canvas.horizon - canvas.rng.uniform(9, 18)
    water = oklch_to_rgb(0.66, 0.09, canvas.rng.uniform(205, 240))
    corners = (complex(0, far), complex(IMAGE_SIZE, far), complex(IMAGE_SIZE, canvas.horizon),
               complex(0, canvas.horizon))  # fmt: skip
    canvas.paint(Sketch().polygon(corners, water))
    for _ in range(9):
        start = complex(
            canvas.rng.uniform(0, IMAGE_SIZE), canvas.rng.uniform(far + 1, canvas.horizon - 2)
        )
        glint = Sketch().line(
            start, start + canvas.rng.uniform(3, 9), 0.4, blend(water, WHITE, 0.4)
        )
        canvas.paint(glint)
    foam = [complex(x, canvas.horizon + math.sin(x / 5) * 0.8) for x in range(0, IMAGE_SIZE + 6, 6)]
    canvas.paint(Sketch().path(foam, 1.0, blend(canvas.ground, WHITE, 0.6)))
    if canvas.rng.bernoulli(0.4):
        boat = complex(canvas.rng.uniform(8, IMAGE_SIZE - 8), far + 2)
        sail = Sketch().polygon((boat - 7j, boat - 1j, boat + 4 - 1j), (252, 246, 236))
        canvas.paint(sail.line(boat - 3, boat + 4, 0.8, (150, 96, 84)))


def houses(canvas: Canvas) -> None:
    """A row of pastel houses with windows."""
    x = canvas.rng.uniform(-12, 0)
    while x < IMAGE_SIZE:
        width, height = canvas.rng.uniform(14, 26), canvas.rng.uniform(16, canvas.horizon * 0.8)
        wall = blend(oklch_to_rgb(0.8, 0.06, canvas.rng.uniform(0, 360)), canvas.sky, 0.35)
        pane = blend(wall, (70, 84, 120), 0.35)
        top = canvas.horizon - height
        house = Sketch().polygon(
            (complex(x, canvas.horizon), complex(x, top), complex(x + width, top),
             complex(x + width, canvas.horizon)), wall)  # fmt: skip
        house.line(complex(x, top), complex(x + width, top), 0.8, blend(wall, (90, 60, 70), 0.4))
        canvas.paint(house)
        columns, rows = max(int(width / 6.5), 1), max(int((height - 5) / 8), 1)
        for column in range(columns):
            for row in range(rows):
                corner = complex(x + width * (column + 0.28) / columns, top + 3.5 + 8 * row)
                across = width * 0.44 / columns
                window = (corner, corner + across, corner + across + 4.2j, corner + 4.2j)
                canvas.paint(Sketch().polygon(window, pane))
        x += width + canvas.rng.choice((0.0, 0.0, 5.0))


def wallpaper(canvas: Canvas) -> None:
    """Broad stripes and a skirting board."""
    stripe = blend(canvas.sky, WHITE, canvas.rng.uniform(0.12, 0.3))
    step = canvas.rng.choice((8, 12, 16))
    for x in range(0, IMAGE_SIZE, step):
        end = complex(x + step / 2, canvas.horizon)
        corners = (complex(x, 0), complex(x + step / 2, 0), end, complex(x, canvas.horizon))
        canvas.paint(Sketch().polygon(corners, stripe))
    board = complex(0, canvas.horizon - 1.2)
    canvas.paint(Sketch().line(board, board + IMAGE_SIZE, 1.4, blend(canvas.sky, WHITE, 0.6)))


def windows(canvas: Canvas) -> None:
    """A window or framed pictures on the wall."""
    x = canvas.rng.uniform(2, 14)
    while x < IMAGE_SIZE - 16:
        width, height = canvas.rng.uniform(12, 24), canvas.rng.uniform(12, canvas.horizon * 0.55)
        top = canvas.rng.uniform(3, max(4.0, canvas.horizon * 0.8 - height))
        corner = complex(x, top)
        inside = oklch_to_rgb(0.88, 0.06, canvas.rng.choice((230, 230, 200, 60, 20)))
        pane = (corner, corner + width, corner + width + 1j * height, corner + 1j * height)
        canvas.paint(Sketch().polygon(pane, (250, 246, 238), 1.0))
        canvas.paint(Sketch().polygon(pane, inside))
        if canvas.rng.bernoulli(0.5):
            cross = Sketch().line(corner + width / 2, corner + width / 2 + 1j * height, 0.5, WHITE)
            canvas.paint(cross.line(corner + 0.5j * height, corner + width + 0.5j * height, 0.5,
                                   WHITE))  # fmt: skip
        else:
            hill = blend(inside, canvas.ground, 0.6)
            canvas.paint(Sketch().polygon((pane[3], pane[3] + width * (0.4 - 0.2j) - 2j, pane[2]),
                                         hill))  # fmt: skip
        x += width + canvas.rng.uniform(10, 34)


def planks(canvas: Canvas) -> None:
    """Floorboards that widen towards the viewer."""
    seam = blend(canvas.front, (70, 40, 30), 0.22)
    for number in range(1, 7):
        row = complex(0, canvas.horizon + (IMAGE_SIZE - canvas.horizon) * (number / 7) ** 1.5)
        canvas.paint(Sketch().line(row, row + IMAGE_SIZE, 0.3, seam))


def rug(canvas: Canvas) -> None:
    """An oval rug, in half of the rooms."""
    if canvas.rng.bernoulli(0.5):
        return
    x, half = canvas.rng.uniform(30, 98), canvas.rng.uniform(26, 44)
    y, high = (canvas.horizon + IMAGE_SIZE) / 2 + 4, (IMAGE_SIZE - canvas.horizon) * 0.28
    hue = canvas.rng.uniform(0, 360)
    for share, lightness in ((1.0, 0.66), (0.86, 0.84), (0.76, 0.72)):
        box = (x - half * share, y - high * share, x + half * share, y + high * share)
        canvas.translucent_ellipse(box, oklch_to_rgb(lightness, 0.07, hue), 170)


def wallbars(canvas: Canvas) -> None:
    """Wall bars and a stripe along a gym's wall."""
    stripe = complex(0, canvas.horizon * canvas.rng.uniform(0.3, 0.7))
    colour = oklch_to_rgb(0.72, 0.11, canvas.rng.uniform(0, 360))
    canvas.paint(Sketch().line(stripe, stripe + IMAGE_SIZE, 2.0, blend(colour, canvas.sky, 0.3)))
    wood = blend(oklch_to_rgb(0.7, 0.09, 65), canvas.sky, 0.25)
    for _ in range(canvas.rng.randrange(3)):
        x, top = canvas.rng.uniform(4, IMAGE_SIZE - 24), canvas.horizon * 0.2
        bars = Sketch()
        for side in (0, 20):
            bars.line(complex(x + side, top), complex(x + side, canvas.horizon), 0.9, wood)
        for rung in range(6):
            row = complex(x, top + (canvas.horizon - top) * (rung + 0.5) / 6)
            bars.line(row, row + 20, 0.6, wood)
        canvas.paint(bars)
    edge = complex(0, canvas.horizon)
    canvas.paint(
        Sketch().line(edge, edge + IMAGE_SIZE, 1.0, blend(canvas.ground, (60, 50, 60), 0.3))
    )


def court(canvas: Canvas) -> None:
    """Lines on a gym's floor."""
    line = blend(oklch_to_rgb(0.75, 0.12, canvas.rng.uniform(0, 360)), WHITE, 0.2)
    row = complex(0, canvas.horizon + (IMAGE_SIZE - canvas.horizon) * canvas.rng.uniform(0.15, 0.4))
    canvas.paint(Sketch().line(row, row + IMAGE_SIZE, 0.7, line))
    front = complex(canvas.rng.uniform(10, 118), IMAGE_SIZE)
    back = complex(IMAGE_SIZE / 2 + (front.real - IMAGE_SIZE / 2) * 0.5, row.imag)
    canvas.paint(Sketch().line(front, back, 0.7, line))
