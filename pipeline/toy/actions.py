"""What people do with things: pose and place of both, for every verb.

A group lives in body heights, the person looking to the right; the ground is 0.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from pipeline.toy.canvas import Colour, Sketch
from pipeline.toy.objects import WHITE, ToyObject
from pipeline.toy.people import (
    POSES,
    Appearance,
    Joints,
    draw_arm,
    draw_body,
    draw_leg,
    forward_kinematics,
    jitter_pose,
    move_hands,
    unit_vector,
)
from pipeline.toy.rng import ScalarRNG

DECORATION = -1
ROPE: Colour = (214, 190, 146)


@dataclass(frozen=True)
class ActionLayout:
    """An action before it is drawn.

    Attributes:
        joints: the posed body.
        obj: the thing's drawing, in place.
        layer: `back` (behind all of the person), `middle` (between the legs), `front` (only the
            near arm is in front).
        decoration: ropes and streaks.
    """

    joints: Joints
    obj: Sketch
    layer: str
    decoration: Sketch | None = None


def place_at(
    obj: ToyObject, anchor: complex, at: complex, turn: float = 0.0, mirrored: bool = False
) -> Sketch:
    """The thing's drawing with one of its points at a place."""
    factor = cmath.exp(1j * math.radians(turn))
    offset = factor * (-anchor.conjugate() if mirrored else anchor)
    return obj.sketch.transformed(at - offset, 1.0, turn, mirrored)


def place_left_edge_at(
    obj: ToyObject, left: float, bottom: float = 0.0, turn: float = 0.0, mirrored: bool = False
) -> Sketch:
    """The thing's drawing with its box's left and lower edge at a place."""
    turned = obj.sketch.transformed(0, 1.0, turn, mirrored)
    box = turned.bounds()
    return turned.transformed(complex(left - box[0], bottom - box[3]))


def standing_body(pose_name: str, rng: ScalarRNG, ground: float = 0.0) -> Joints:
    """A body in a pose with its lower sole on the ground."""
    pose = jitter_pose(POSES[pose_name], rng)
    return forward_kinematics(pose, complex(0, ground - forward_kinematics(pose).lowest))


def _ride(obj: ToyObject, rng: ScalarRNG) -> ActionLayout:
    if obj.name == "skateboard":
        return ActionLayout(standing_body("surf", rng, obj.seat.imag), place_at(obj, 0, 0), "back")
    hip = obj.seat - 0.045j
    joints = forward_kinematics(jitter_pose(POSES["ride"], rng), hip)
    hands = joints.shoulder + 0.27 + 0.14j
    joints = move_hands(joints, hands, hands + 0.02 - 0.02j)
    return ActionLayout(joints, place_at(obj, 0, 0), "middle")


def _sit_on(obj: ToyObject, rng: ScalarRNG) -> ActionLayout:
    backwards = obj.name == "horse"
    sketch = place_at(obj, 0, 0, mirrored=backwards)
    seat = -obj.seat.conjugate() if backwards else obj.seat
    joints = forward_kinematics(jitter_pose(POSES["sit_on"], rng), seat - 0.05j)
    return ActionLayout(joints, sketch, "back")


def _carry(obj: ToyObject, rng: ScalarRNG) -> ActionLayout:
    joints = standing_body("carry", rng)
    left, _, right, _ = obj.box
    half = min((right - left) / 2, 0.18)
    base = complex(joints.head.real, joints.top + 0.01)
    hands = (base + half - 0.06j, base - half - 0.06j)
    joints = replace(
        joints,
        near_arm=move_hands(joints, hands[0]).near_arm,
        far_arm=move_hands(joints, far=hands[1], bends=-1).far_arm,
    )
    return ActionLayout(joints, place_at(obj, 0, base, mirrored=rng.bernoulli(0.5)), "middle")


def _hold(obj: ToyObject, rng: ScalarRNG) -> ActionLayout:
    return hold_in_hand(standing_body("hold", rng), obj, rng)


def hold_in_hand(joints: Joints, obj: ToyObject, rng: ScalarRNG) -> ActionLayout:
    """The thing in the near hand of a body."""
    hand = joints.shoulder + complex(rng.uniform(0.25, 0.29), rng.uniform(0.13, 0.18))
    joints = move_hands(joints, hand)
    turn = {"skateboard": -78.0, "umbrella": 14.0}.get(obj.name, 0.0) + rng.uniform(-8, 8)
    return ActionLayout(joints, place_at(obj, obj.grip, joints.near_arm[1], turn), "front")


def _kick(obj: ToyObject, rng: ScalarRNG) -> ActionLayout:
    joints = standing_body("kick", rng)
    foot = joints.near_leg[1]
    _, top, _, _ = obj.box
    bottom = min(0.0, foot.imag - top * rng.uniform(0.35, 0.6))
    turn = rng.uniform(10, 22)
    return ActionLayout(
        joints, place_left_edge_at(obj, foot.real + 0.05, bottom, turn, True), "back"
    )


def _push(obj: ToyObject, rng: ScalarRNG) -> ActionLayout:
    joints = standing_body("push", rng)
    handle = complex(joints.shoulder.real + rng.uniform(0.27, 0.3), obj.handle.imag)
    joints = move_hands(joints, handle + 0.02j, handle + 0.01 - 0.05j)
    return ActionLayout(joints, place_at(obj, obj.handle, handle), "back")


def _pull(obj: ToyObject, rng: ScalarRNG) -> ActionLayout:
    joints = standing_body("pull", rng)
    hands = joints.shoulder + 0.29 * unit_vector(rng.uniform(66, 78))
    joints = move_hands(joints, hands, hands + 0.05)
    left, _, _, _ = obj.sketch.transformed(mirrored=True).bounds()
    near = max(joints.near_leg[1].real + 0.1, hands.real + 0.2) + rng.uniform(0, 0.2)
    origin = complex(near - left, 0)
    tie = origin - obj.tie.conjugate()
    rope = Sketch().path([hands, (hands + tie) / 2 + 0.02j, tie], 0.014, ROPE)
    return ActionLayout(joints, place_at(obj, 0, origin, mirrored=True), "back", rope)


def _jump(obj: ToyObject, rng: ScalarRNG) -> ActionLayout:
    _, top, _, _ = obj.box
    joints = standing_body("jump", rng, top * rng.uniform(0.85, 1.05))
    shift = rng.uniform(-0.08, 0.08)
    return ActionLayout(joints, place_at(obj, 0, shift, mirrored=rng.bernoulli(0.5)), "back")


def _throw(obj: ToyObject, rng: ScalarRNG) -> ActionLayout:
    joints = standing_body("throw", rng)
    hand = joints.near_arm[1]
    turn = rng.uniform(-30, 30)
    bottom, left = hand.imag - rng.uniform(0, 0.1), hand.real + rng.uniform(0.14, 0.26)
    sketch = place_left_edge_at(obj, left, bottom, turn, rng.bernoulli(0.5))
    box = sketch.bounds()
    middle = complex((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    way = middle - hand
    streaks = Sketch()
    for side in (-0.09, 0.0, 0.09):
        start = hand + way * (0.2 + abs(side)) + 1j * way / abs(way) * side
        streaks.line(start, start + way * 0.3, 0.009, WHITE)
    return ActionLayout(joints, sketch, "back", streaks)


def _point(obj: ToyObject, rng: ScalarRNG) -> ActionLayout:
    joints = standing_body("point", rng)
    reach_of_arm = joints.shoulder.real + 0.35
    sketch = place_left_edge_at(
        obj, reach_of_arm + rng.uniform(0.14, 0.45), mirrored=rng.bernoulli(0.5)
    )
    return ActionLayout(point_at(joints, sketch), sketch, "back")


def point_at(joints: Joints, sketch: Sketch) -> Joints:
    """The body with its near arm stretched towards a thing, never far from level."""
    left, top, right, bottom = sketch.bounds()
    away = complex((left + right) / 2, top + 0.3 * (bottom - top)) - joints.shoulder
    angle = min(max(math.degrees(math.atan2(away.real, away.imag)), 76), 98)
    return move_hands(joints, joints.shoulder + unit_vector(angle))


def _no_interaction(obj: ToyObject, rng: ScalarRNG) -> ActionLayout:
    joints = standing_body("no_interaction", rng)
    left, _, right, _ = obj.box
    gap = 0.2 + rng.uniform(0.0, 0.35)
    start = gap if rng.bernoulli(0.5) else -gap - (right - left)
    return ActionLayout(joints, place_left_edge_at(obj, start, mirrored=rng.bernoulli(0.5)), "back")


ACTIONS: dict[str, Callable[[ToyObject, ScalarRNG], ActionLayout]] = {
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
SIZE_FACTORS = {("push", "box"): 1.35, ("pull", "box"): 1.15, ("throw", "skateboard"): 0.9}


def draw_action(
    verb: str,
    obj: ToyObject,
    appearance: Appearance,
    rng: ScalarRNG,
    in_hand: ToyObject | None = None,
) -> list[tuple[int, Sketch]]:
    """A person doing something with a thing, perhaps holding another one.

    Args:
        in_hand: a second thing, held in the near hand.

    Returns:
        Drawings from back to front and whose they are: 0 the person's, 1, 2 the things', -1
        nobody's.
    """
    placed = ACTIONS[verb](obj, rng)
    objs = [(1, placed.layer, placed.obj)]
    joints = placed.joints
    if in_hand is not None:
        hand = hold_in_hand(joints, in_hand, rng)
        joints = hand.joints
        objs.append((2, hand.layer, hand.obj))
    parts: list[tuple[int, Sketch]] = []

    def add_things(layer: str) -> None:
        parts.extend((owner, sketch) for owner, where, sketch in objs if where == layer)

    add_things("back")
    parts += [(0, draw_leg(joints, appearance, False)), (0, draw_arm(joints, appearance, False))]
    add_things("middle")
    parts += [(0, draw_leg(joints, appearance, True)), (0, draw_body(joints, appearance))]
    add_things("front")
    if placed.decoration is not None:
        parts.append((DECORATION, placed.decoration))
    parts.append((0, draw_arm(joints, appearance, True)))
    return parts
