from dataclasses import astuple

import numpy as np
import pytest

from pipeline.toy.people import (
    FOREARM,
    POSES,
    SHIN,
    THIGH,
    UPPER_ARM,
    forward_kinematics,
    jitter_pose,
    move_hands,
    solve_arm,
    unit_vector,
)
from pipeline.toy.rng import ScalarRNG
from pipeline.toy.scene_spec import toy_vocabulary


@pytest.mark.parametrize(
    ("angle", "direction"), [(0, 1j), (90, 1 + 0j), (180, -1j), (-90, -1 + 0j)]
)
def test_unit_vector(angle, direction):
    assert unit_vector(angle) == pytest.approx(direction)


@pytest.mark.parametrize("name", POSES)
def test_limbs_keep_their_lengths(name):
    joints = forward_kinematics(POSES[name], 3 + 4j)
    for arm in (joints.near_arm, joints.far_arm):
        assert abs(arm[0] - joints.shoulder) == pytest.approx(UPPER_ARM)
        assert abs(arm[1] - arm[0]) == pytest.approx(FOREARM)
    for leg in (joints.near_leg, joints.far_leg):
        assert abs(leg[0] - joints.hip) == pytest.approx(THIGH)
        assert abs(leg[1] - leg[0]) == pytest.approx(SHIN)


def test_poses_differ_by_more_than_the_jitter():
    assert set(toy_vocabulary().verbs) <= set(POSES)
    angles = np.array([np.hstack(astuple(pose)) for pose in POSES.values()])
    differences = np.abs(angles[:, None] - angles).max(2)
    assert (differences[~np.eye(len(angles), dtype=bool)] > 20).all()


def test_standing_person_has_unit_height():
    joints = forward_kinematics(POSES["no_interaction"])
    assert joints.lowest - joints.top == pytest.approx(1.0, abs=0.06)


def test_jitter_is_bounded():
    rng = ScalarRNG(np.random.default_rng(0))
    loose = jitter_pose(POSES["kick"], rng, 5.0)
    assert loose != POSES["kick"]
    assert np.abs(np.hstack(astuple(loose)) - np.hstack(astuple(POSES["kick"]))).max() <= 5.0


@pytest.mark.parametrize("bend", [1, -1])
@pytest.mark.parametrize(
    ("target", "reached"),
    [
        (0.3 + 0.1j, True),
        (-0.25j, True),
        (-0.2 + 0.05j, True),
        (2, False),
        (-5j, False),
        (0, False),
    ],
)
def test_solve_arm(target, reached, bend):
    elbow, hand = solve_arm(0, complex(target), bend)
    assert abs(elbow) == pytest.approx(UPPER_ARM)
    assert abs(hand - elbow) == pytest.approx(FOREARM)
    assert (hand == pytest.approx(target)) == reached


def test_move_hands_moves_only_the_given_hand():
    joints = forward_kinematics(POSES["hold"])
    moved = move_hands(joints, near=joints.shoulder + 0.2)
    assert moved.near_arm != joints.near_arm
    assert moved.far_arm == joints.far_arm
