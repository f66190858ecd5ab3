"""What is seen indoors: walls, windows, floors."""

from __future__ import annotations

from pipeline.world.palette import mix, oklch
from pipeline.world.sketch import SIZE, Sketch
from pipeline.world.stage import WHITE, Stage


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
