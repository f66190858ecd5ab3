"""What people do with things: pose and place of both, for every verb.

A group lives in body heights, the person looking to the right; the ground is 0.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from pipeline.toy.canvas import Colour, Sketch
from pipeline.toy.objects import WHITE, Thing
from pipeline.toy.people import (
    POSES,
    Joints,
    Look,
    along,
    draw_arm,
    draw_body,
    draw_leg,
    joints_of,
    loosened,
    reaching,
)
from pipeline.toy.rng import Dice

DECORATION = -1
ROPE: Colour = (214, 190, 146)


@dataclass(frozen=True)
class Placed:
    """An action before it is drawn.

    Attributes:
        joints: the posed body.
        thing: the thing's drawing, in place.
        layer: `back` (behind all of the person), `middle` (between the legs), `front` (only the
            near arm is in front).
        decoration: ropes and streaks.
    """

    joints: Joints
    thing: Sketch
    layer: str
    decoration: Sketch | None = None


def put(
    thing: Thing, anchor: complex, at: complex, turn: float = 0.0, mirrored: bool = False
) -> Sketch:
    """The thing's drawing with one of its points at a place."""
    factor = cmath.exp(1j * math.radians(turn))
    offset = factor * (-anchor.conjugate() if mirrored else anchor)
    return thing.sketch.moved(at - offset, 1.0, turn, mirrored)


def put_left(
    thing: Thing, left: float, bottom: float = 0.0, turn: float = 0.0, mirrored: bool = False
) -> Sketch:
    """The thing's drawing with its box's left and lower edge at a place."""
    turned = thing.sketch.moved(0, 1.0, turn, mirrored)
    box = turned.bounds()
    return turned.moved(complex(left - box[0], bottom - box[3]))


def standing(pose_name: str, dice: Dice, ground: float = 0.0) -> Joints:
    """A body in a pose with its lower sole on the ground."""
    pose = loosened(POSES[pose_name], dice)
    return joints_of(pose, complex(0, ground - joints_of(pose).lowest))


def _ride(thing: Thing, dice: Dice) -> Placed:
    if thing.name == "skateboard":
        return Placed(standing("surf", dice, thing.seat.imag), put(thing, 0, 0), "back")
    hip = thing.seat - 0.045j
    joints = joints_of(loosened(POSES["ride"], dice), hip)
    hands = joints.shoulder + 0.27 + 0.14j
    joints = reaching(joints, hands, hands + 0.02 - 0.02j)
    return Placed(joints, put(thing, 0, 0), "middle")


def _sit_on(thing: Thing, dice: Dice) -> Placed:
    backwards = thing.name == "horse"
    sketch = put(thing, 0, 0, mirrored=backwards)
    seat = -thing.seat.conjugate() if backwards else thing.seat
    joints = joints_of(loosened(POSES["sit_on"], dice), seat - 0.05j)
    return Placed(joints, sketch, "back")


def _carry(thing: Thing, dice: Dice) -> Placed:
    joints = standing("carry", dice)
    left, _, right, _ = thing.box
    half = min((right - left) / 2, 0.18)
    base = complex(joints.head.real, joints.top + 0.01)
    hands = (base + half - 0.06j, base - half - 0.06j)
    joints = replace(
        joints,
        near_arm=reaching(joints, hands[0]).near_arm,
        far_arm=reaching(joints, far=hands[1], bends=-1).far_arm,
    )
    return Placed(joints, put(thing, 0, base, mirrored=dice.chance(0.5)), "middle")


def _hold(thing: Thing, dice: Dice) -> Placed:
    return held(standing("hold", dice), thing, dice)


def held(joints: Joints, thing: Thing, dice: Dice) -> Placed:
    """The thing in the near hand of a body."""
    hand = joints.shoulder + complex(dice.between(0.25, 0.29), dice.between(0.13, 0.18))
    joints = reaching(joints, hand)
    turn = {"skateboard": -78.0, "umbrella": 14.0}.get(thing.name, 0.0) + dice.between(-8, 8)
    return Placed(joints, put(thing, thing.grip, joints.near_arm[1], turn), "front")


def _kick(thing: Thing, dice: Dice) -> Placed:
    joints = standing("kick", dice)
    foot = joints.near_leg[1]
    _, top, _, _ = thing.box
    bottom = min(0.0, foot.imag - top * dice.between(0.35, 0.6))
    turn = dice.between(10, 22)
    return Placed(joints, put_left(thing, foot.real + 0.05, bottom, turn, True), "back")


def _push(thing: Thing, dice: Dice) -> Placed:
    joints = standing("push", dice)
    handle = complex(joints.shoulder.real + dice.between(0.27, 0.3), thing.handle.imag)
    joints = reaching(joints, handle + 0.02j, handle + 0.01 - 0.05j)
    return Placed(joints, put(thing, thing.handle, handle), "back")


def _pull(thing: Thing, dice: Dice) -> Placed:
    joints = standing("pull", dice)
    hands = joints.shoulder + 0.29 * along(dice.between(66, 78))
    joints = reaching(joints, hands, hands + 0.05)
    left, _, _, _ = thing.sketch.moved(mirrored=True).bounds()
    near = max(joints.near_leg[1].real + 0.1, hands.real + 0.2) + dice.between(0, 0.2)
    origin = complex(near - left, 0)
    tie = origin - thing.tie.conjugate()
    rope = Sketch().path([hands, (hands + tie) / 2 + 0.02j, tie], 0.014, ROPE)
    return Placed(joints, put(thing, 0, origin, mirrored=True), "back", rope)


def _jump(thing: Thing, dice: Dice) -> Placed:
    _, top, _, _ = thing.box
    joints = standing("jump", dice, top * dice.between(0.85, 1.05))
    shift = dice.between(-0.08, 0.08)
    return Placed(joints, put(thing, 0, shift, mirrored=dice.chance(0.5)), "back")


def _throw(thing: Thing, dice: Dice) -> Placed:
    joints = standing("throw", dice)
    hand = joints.near_arm[1]
    turn = dice.between(-30, 30)
    bottom, left = hand.imag - dice.between(0, 0.1), hand.real + dice.between(0.14, 0.26)
    sketch = put_left(thing, left, bottom, turn, dice.chance(0.5))
    box = sketch.bounds()
    middle = complex((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    way = middle - hand
    streaks = Sketch()
    for side in (-0.09, 0.0, 0.09):
        start = hand + way * (0.2 + abs(side)) + 1j * way / abs(way) * side
        streaks.limb(start, start + way * 0.3, 0.009, WHITE)
    return Placed(joints, sketch, "back", streaks)


def _point(thing: Thing, dice: Dice) -> Placed:
    joints = standing("point", dice)
    reach_of_arm = joints.shoulder.real + 0.35
    sketch = put_left(thing, reach_of_arm + dice.between(0.14, 0.45), mirrored=dice.chance(0.5))
    return Placed(pointing(joints, sketch), sketch, "back")


def pointing(joints: Joints, sketch: Sketch) -> Joints:
    """The body with its near arm stretched towards a thing, never far from level."""
    left, top, right, bottom = sketch.bounds()
    away = complex((left + right) / 2, top + 0.3 * (bottom - top)) - joints.shoulder
    angle = min(max(math.degrees(math.atan2(away.real, away.imag)), 76), 98)
    return reaching(joints, joints.shoulder + along(angle))


def _no_interaction(thing: Thing, dice: Dice) -> Placed:
    joints = standing("no_interaction", dice)
    left, _, right, _ = thing.box
    gap = 0.2 + dice.between(0.0, 0.35)
    start = gap if dice.chance(0.5) else -gap - (right - left)
    return Placed(joints, put_left(thing, start, mirrored=dice.chance(0.5)), "back")


ACTIONS: dict[str, Callable[[Thing, Dice], Placed]] = {
    "ride": _ride,
    "sit_on": _sit_on,
    "carry": _carry,
    "hold": _hold,
    "kick": _kick,
    "push": _push,
    "pull": _pull,
    "jump": _jump,
    "throw": _throw,
    "point": _point,
    "no_interaction": _no_interaction,
}
# How much larger than usual a thing is when this is done with it.
GROWTH = {("push", "box"): 1.35, ("pull", "box"): 1.15, ("throw", "skateboard"): 0.9}


def act(
    verb: str, thing: Thing, look: Look, dice: Dice, in_hand: Thing | None = None
) -> list[tuple[int, Sketch]]:
    """A person doing something with a thing, perhaps holding another one.

    Args:
        in_hand: a second thing, held in the near hand.

    Returns:
        Drawings from back to front and whose they are: 0 the person's, 1, 2 the things', -1
        nobody's.
    """
    placed = ACTIONS[verb](thing, dice)
    things = [(1, placed.layer, placed.thing)]
    joints = placed.joints
    if in_hand is not None:
        hand = held(joints, in_hand, dice)
        joints = hand.joints
        things.append((2, hand.layer, hand.thing))
    parts: list[tuple[int, Sketch]] = []

    def add_things(layer: str) -> None:
        parts.extend((owner, sketch) for owner, where, sketch in things if where == layer)

    add_things("back")
    parts += [(0, draw_leg(joints, look, False)), (0, draw_arm(joints, look, False))]
    add_things("middle")
    parts += [(0, draw_leg(joints, look, True)), (0, draw_body(joints, look))]
    add_things("front")
    if placed.decoration is not None:
        parts.append((DECORATION, placed.decoration))
    parts.append((0, draw_arm(joints, look, True)))
    return parts
