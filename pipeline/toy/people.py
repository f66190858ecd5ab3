"""People of toy images: poses as joint angles, forward and inverse kinematics, and drawing.

Lengths are in units of the body height. The person faces right, and the hip is the origin. Angles
are in degrees from straight down, positive forward: 90 is forward, 180 up, -90 backward.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, replace

from pipeline.toy.canvas import Colour, Sketch, arc
from pipeline.toy.palette import HAIRS, SKINS, Palette, blend
from pipeline.toy.rng import ScalarRNG

THIGH, SHIN, TORSO, UPPER_ARM, FOREARM = 0.215, 0.215, 0.27, 0.165, 0.175
NECK, HEAD = 0.125, 0.112
SOLE = 0.03
INK: Colour = (40, 32, 38)


@dataclass(frozen=True)
class Pose:
    """Joint angles of a body.

    Attributes:
        lean: angle of the torso from upright, positive forward.
        near_arm, far_arm: angles of upper arm and forearm; the near arm is in front of the body.
        near_leg, far_leg: angles of thigh and shin.
    """

    lean: float
    near_arm: tuple[float, float]
    far_arm: tuple[float, float]
    near_leg: tuple[float, float]
    far_leg: tuple[float, float]


POSES = {
    "ride": Pose(10, (42, 78), (52, 84), (52, -12), (62, -2)),
    "surf": Pose(10, (80, 72), (-78, -84), (42, 2), (-34, -8)),
    "sit_on": Pose(-6, (18, 62), (26, 70), (86, 4), (82, -6)),
    "carry": Pose(0, (150, 172), (-150, -172), (13, -3), (-13, -16)),
    "hold": Pose(0, (14, 88), (-8, 2), (7, 2), (-7, -7)),
    "kick": Pose(-16, (-62, -48), (70, 88), (74, 66), (-8, -16)),
    "push": Pose(42, (82, 88), (88, 92), (22, -22), (-34, -46)),
    "pull": Pose(-34, (78, 84), (84, 88), (62, 18), (42, 2)),
    "jump": Pose(6, (132, 150), (-128, -146), (84, 70), (-70, -96)),
    "throw": Pose(16, (128, 136), (-70, -50), (34, 8), (-30, -42)),
    "point": Pose(-2, (90, 90), (-6, 4), (6, 2), (-6, -6)),
    "no_interaction": Pose(0, (7, 12), (-9, -3), (9, 2), (-9, -13)),
}


@dataclass(frozen=True)
class Appearance:
    """Colours, clothes and haircut of a person."""

    skin: Colour
    hair: Colour
    top: Colour
    bottom: Colour
    shoes: Colour
    haircut: int
    sleeves: bool
    trousers: bool
    skirt: bool
    striped: bool


@dataclass(frozen=True)
class Joints:
    """Positions of a body's joints; arms are (elbow, hand), legs are (knee, ankle)."""

    hip: complex
    shoulder: complex
    head: complex
    near_arm: tuple[complex, complex]
    far_arm: tuple[complex, complex]
    near_leg: tuple[complex, complex]
    far_leg: tuple[complex, complex]

    @property
    def top(self) -> float:
        """Row of the top of the head."""
        return self.head.imag - HEAD

    @property
    def lowest(self) -> float:
        """Row of the lower sole."""
        return max(self.near_leg[1].imag, self.far_leg[1].imag) + SOLE


def unit_vector(angle: float) -> complex:
    """Unit vector of an angle in degrees: 0 is down, 90 forward."""
    return complex(math.sin(math.radians(angle)), math.cos(math.radians(angle)))


def jitter_pose(pose: Pose, rng: ScalarRNG, degrees: float = 5.0) -> Pose:
    """The pose with a random change of every angle, up to `degrees`."""

    def jitter(angle: float) -> float:
        return angle + rng.uniform(-degrees, degrees)

    lean, *limbs = astuple(pose)
    return Pose(jitter(lean), *[(jitter(first), jitter(second)) for first, second in limbs])


def forward_kinematics(pose: Pose, hip: complex = 0) -> Joints:
    """Positions of the joints of a pose, with the hip at a point."""
    upright = unit_vector(180 - pose.lean)
    shoulder = hip + TORSO * upright

    def chain(
        start: complex, angles: tuple[float, float], lengths: tuple[float, float]
    ) -> tuple[complex, complex]:
        middle = start + lengths[0] * unit_vector(angles[0])
        return middle, middle + lengths[1] * unit_vector(angles[1])

    arm, leg = (UPPER_ARM, FOREARM), (THIGH, SHIN)
    return Joints(
        hip,
        shoulder,
        shoulder + NECK * unit_vector(180 - 0.6 * pose.lean) + 0.015,
        chain(shoulder, pose.near_arm, arm),
        chain(shoulder, pose.far_arm, arm),
        chain(hip, pose.near_leg, leg),
        chain(hip, pose.far_leg, leg),
    )


def solve_arm(shoulder: complex, target: complex, bend: int = 1) -> tuple[complex, complex]:
    """Elbow and hand of an arm that reaches for a point, by inverse kinematics.

    Args:
        shoulder: position of the shoulder.
        target: position for the hand. If it is out of reach, the arm is stretched towards it.
        bend: side of the elbow, 1 clockwise from the arm's direction, -1 counterclockwise.
    """
    offset = target - shoulder
    distance = min(max(abs(offset), 0.06), 0.985 * (UPPER_ARM + FOREARM))
    direction = offset / abs(offset) if abs(offset) > 0 else 1 + 0j
    # Law of cosines in the triangle of shoulder, elbow and hand.
    along = (distance**2 + UPPER_ARM**2 - FOREARM**2) / (2 * distance)
    across = math.sqrt(max(UPPER_ARM**2 - along**2, 0.0))
    elbow = shoulder + direction * complex(along, bend * across)
    return elbow, shoulder + direction * distance


def move_hands(
    joints: Joints, near: complex | None = None, far: complex | None = None, bend: int = 1
) -> Joints:
    """The joints with the hands moved to the given positions; see `solve_arm`."""
    if near is not None:
        joints = replace(joints, near_arm=solve_arm(joints.shoulder, near, bend))
    if far is not None:
        joints = replace(joints, far_arm=solve_arm(joints.shoulder, far, bend))
    return joints


def sample_appearance(palette: Palette, rng: ScalarRNG) -> Appearance:
    """Random colours, clothes and haircut of a person."""
    top, bottom, shoes = palette.accents(rng, 3)
    return Appearance(
        skin=palette.natural(rng, SKINS),
        hair=palette.natural(rng, HAIRS),
        top=top,
        bottom=bottom,
        shoes=shoes,
        haircut=rng.randrange(5),
        sleeves=rng.bernoulli(0.5),
        trousers=rng.bernoulli(0.65),
        skirt=rng.bernoulli(0.25),
        striped=rng.bernoulli(0.4),
    )


def draw_arm(joints: Joints, appearance: Appearance, near: bool) -> Sketch:
    """Drawing of the near or the far arm; the far one is darker."""
    elbow, hand = joints.near_arm if near else joints.far_arm
    sleeve, skin = appearance.top, appearance.skin
    if not near:
        sleeve, skin = _shade(sleeve), _shade(skin)
    arm = Sketch().line(elbow, hand, 0.037, sleeve if appearance.sleeves else skin, 0.85)
    arm.disc(hand, 0.043, skin)
    return arm.line(joints.shoulder, elbow, 0.047, sleeve, 0.85)


def draw_leg(joints: Joints, appearance: Appearance, near: bool) -> Sketch:
    """Drawing of the near or the far leg with its shoe; the far one is darker."""
    knee, ankle = joints.near_leg if near else joints.far_leg
    cloth, skin, shoe = appearance.bottom, appearance.skin, appearance.shoes
    if not near:
        cloth, skin, shoe = _shade(cloth), _shade(skin), _shade(shoe)
    shin = ankle - knee
    toe = shin / abs(shin) * -1j
    leg = Sketch().line(knee, ankle, 0.046, cloth if appearance.trousers else skin, 0.8)
    leg.line(joints.hip, knee, 0.066, cloth, 0.74).disc(joints.hip, 0.074, cloth)
    return leg.line(ankle - 0.01 * toe, ankle + 0.065 * toe, 0.036, shoe, 0.85)


def draw_body(joints: Joints, appearance: Appearance) -> Sketch:
    """Drawing of torso and head."""
    body = Sketch()
    body.line(joints.shoulder, joints.head, 0.04, appearance.skin)
    waist = joints.hip + 0.13 * (joints.shoulder - joints.hip)
    if appearance.skirt:
        body.new_layer()
        for knee, _ in (joints.near_leg, joints.far_leg):
            hem = joints.hip + 0.62 * (knee - joints.hip)
            body.line(joints.hip, hem, 0.072, appearance.bottom, 1.2)
    body.new_layer().line(joints.shoulder, waist, 0.085, appearance.top, 0.9)
    if appearance.striped:
        middle, across = (joints.shoulder + waist) / 2, (joints.shoulder - waist) * 0.3j
        body.new_layer(outlined=False).line(
            middle - across, middle + across, 0.022, appearance.shoes
        )
    return body.add(_draw_head(joints, appearance))


def _draw_head(joints: Joints, appearance: Appearance) -> Sketch:
    """Head, hair and face, drawn upright around the origin and then turned with the neck."""
    head = Sketch()
    if appearance.haircut == 1:
        head.line(-0.05 - 0.04j, -0.075 + 0.13j, 0.07, appearance.hair, 0.8)
    elif appearance.haircut == 2:
        head.line(-0.1 - 0.05j, -0.165 + 0.07j, 0.042, appearance.hair, 0.6)
    elif appearance.haircut == 3:
        head.disc(-0.07 - 0.115j, 0.055, appearance.hair)
    head.new_layer().disc(0, HEAD, appearance.skin)
    head.polygon(
        [*arc(0, HEAD, HEAD, 100, 318, 12), 0.03 - 0.055j, -0.035 - 0.02j], appearance.hair
    )
    if appearance.haircut == 4:
        head.new_layer().polygon(
            arc(-0.012j, HEAD + 0.012, HEAD + 0.012, 180, 360, 10), appearance.shoes
        )
        head.line(0.05 - 0.014j, 0.15 - 0.014j, 0.016, appearance.shoes)
    head.new_layer(outlined=False).disc(0.058 - 0.002j, 0.021, INK).disc(
        0.03 + 0.045j, 0.024, blend(appearance.skin, (236, 90, 90), 0.35)
    )
    lips = blend(appearance.skin, (130, 30, 40), 0.6)
    head.line(0.052 + 0.06j, 0.082 + 0.052j, 0.009, lips)
    neck = joints.head - joints.shoulder
    return head.transformed(joints.head, turn=math.degrees(math.atan2(neck.real, -neck.imag)))


def _shade(colour: Colour) -> Colour:
    red, green, blue = colour
    return int(red * 0.82), int(green * 0.8), int(blue * 0.84)
