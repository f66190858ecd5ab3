"""What lies on the ground or stands in front: flowers, stones, high grass, snowflakes."""

from __future__ import annotations

from pipeline.world.palette import mix, oklch
from pipeline.world.sketch import SIZE, Sketch
from pipeline.world.stage import WHITE, Stage


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
