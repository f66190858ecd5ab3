"""Pose of a person and position of an object for every verb of the toy dataset.

Lengths are in units of the body height; the person faces right, and the ground is row 0.
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

# Owner of parts that belong to no box, such as ropes.
DECORATION = -1
ROPE: Colour = (214, 190, 146)


@dataclass(frozen=True)
class ActionLayout:
    """A posed person and an object at its position, before the person is drawn.

    Attributes:
        joints: joints of the person.
        obj: drawing of the object.
        layer: `back` (behind the person), `middle` (between the legs) or `front` (behind the near
            arm only).
        decoration: ropes and motion streaks.
    """

    joints: Joints
    obj: Sketch
    layer: str
    decoration: Sketch | None = None


def place_at(
    obj: ToyObject, anchor: complex, point: complex, turn: float = 0.0, mirrored: bool = False
) -> Sketch:
    """The object's drawing with its point `anchor` moved to `point`; `turn` in degrees."""
    factor = cmath.exp(1j * math.radians(turn))
    offset = factor * (-anchor.conjugate() if mirrored else anchor)
    return obj.sketch.transformed(point - offset, 1.0, turn, mirrored)


def place_left_edge_at(
    obj: ToyObject, left: float, bottom: float = 0.0, turn: float = 0.0, mirrored: bool = False
) -> Sketch:
    """The object's drawing with the left and lower edge of its box at given coordinates."""
    turned = obj.sketch.transformed(0, 1.0, turn, mirrored)
    box = turned.bounds()
    return turned.transformed(complex(left - box[0], bottom - box[3]))


def standing_body(pose_name: str, rng: ScalarRNG, ground: float = 0.0) -> Joints:
    """A body in a randomly varied pose with its lower sole on the ground."""
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
        far_arm=move_hands(joints, far=hands[1], bend=-1).far_arm,
    )
    return ActionLayout(joints, place_at(obj, 0, base, mirrored=rng.bernoulli(0.5)), "middle")


def _hold(obj: ToyObject, rng: ScalarRNG) -> ActionLayout:
    return hold_in_hand(standing_body("hold", rng), obj, rng)


def hold_in_hand(joints: Joints, obj: ToyObject, rng: ScalarRNG) -> ActionLayout:
    """The object in the near hand of a body."""
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
    path = middle - hand
    streaks = Sketch()
    for side in (-0.09, 0.0, 0.09):
        start = hand + path * (0.2 + abs(side)) + 1j * path / abs(path) * side
        streaks.line(start, start + path * 0.3, 0.009, WHITE)
    return ActionLayout(joints, sketch, "back", streaks)


def _point(obj: ToyObject, rng: ScalarRNG) -> ActionLayout:
    joints = standing_body("point", rng)
    arm_reach = joints.shoulder.real + 0.35
    sketch = place_left_edge_at(
        obj, arm_reach + rng.uniform(0.14, 0.45), mirrored=rng.bernoulli(0.5)
    )
    left, top, right, bottom = sketch.bounds()
    offset = complex((left + right) / 2, top + 0.3 * (bottom - top)) - joints.shoulder
    angle = min(max(math.degrees(math.atan2(offset.real, offset.imag)), 76), 98)
    joints = move_hands(joints, joints.shoulder + unit_vector(angle))
    return ActionLayout(joints, sketch, "back")


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
# Factors on the usual size of an object, by verb and object.
SIZE_FACTORS = {("push", "box"): 1.35, ("pull", "box"): 1.15, ("throw", "skateboard"): 0.9}


def draw_action(
    verb: str,
    obj: ToyObject,
    appearance: Appearance,
    rng: ScalarRNG,
    in_hand: ToyObject | None = None,
) -> list[tuple[int, Sketch]]:
    """Draws a person who does an action with an object.

    Args:
        verb: name of the verb.
        obj: the object.
        appearance: colours and clothes of the person.
        rng: random numbers of the image.
        in_hand: a second object that is held in the near hand.

    Returns:
        Owner and drawing of every part, from back to front. Owners are 0 for the person, 1 for
        `obj`, 2 for `in_hand`, and `DECORATION`.
    """
    action = ACTIONS[verb](obj, rng)
    objects = [(1, action.layer, action.obj)]
    joints = action.joints
    if in_hand is not None:
        held = hold_in_hand(joints, in_hand, rng)
        joints = held.joints
        objects.append((2, held.layer, held.obj))
    parts: list[tuple[int, Sketch]] = []

    def add_objects(layer: str) -> None:
        parts.extend((owner, sketch) for owner, its_layer, sketch in objects if its_layer == layer)

    add_objects("back")
    parts += [(0, draw_leg(joints, appearance, False)), (0, draw_arm(joints, appearance, False))]
    add_objects("middle")
    parts += [(0, draw_leg(joints, appearance, True)), (0, draw_body(joints, appearance))]
    add_objects("front")
    if action.decoration is not None:
        parts.append((DECORATION, action.decoration))
    parts.append((0, draw_arm(joints, appearance, True)))
    return parts
