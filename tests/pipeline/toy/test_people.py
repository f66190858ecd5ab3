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


def test_every_verb_has_a_pose():
    assert set(toy_vocabulary().verbs) <= set(POSES)


@pytest.mark.parametrize("name", POSES)
def test_limbs_keep_their_lengths(name):
    joints = forward_kinematics(POSES[name], 3 + 4j)
    for arm in (joints.near_arm, joints.far_arm):
        assert abs(arm[0] - joints.shoulder) == pytest.approx(UPPER_ARM)
        assert abs(arm[1] - arm[0]) == pytest.approx(FOREARM)
    for leg in (joints.near_leg, joints.far_leg):
        assert abs(leg[0] - joints.hip) == pytest.approx(THIGH)
        assert abs(leg[1] - leg[0]) == pytest.approx(SHIN)


@pytest.mark.parametrize("first", POSES)
@pytest.mark.parametrize("second", POSES)
def test_poses_differ_by_more_than_the_jitter(first, second):
    def angles(name):
        pose = POSES[name]
        return np.array([pose.lean, *pose.near_arm, *pose.far_arm, *pose.near_leg, *pose.far_leg])

    if first != second:
        assert np.abs(angles(first) - angles(second)).max() > 20


def test_standing_person_has_unit_height():
    joints = forward_kinematics(POSES["no_interaction"])
    assert joints.lowest - joints.top == pytest.approx(1.0, abs=0.06)


def test_jitter_is_bounded():
    rng = ScalarRNG(np.random.default_rng(0))
    loose = jitter_pose(POSES["kick"], rng, 5.0)
    assert loose != POSES["kick"]
    assert np.abs(np.hstack(astuple(loose)) - np.hstack(astuple(POSES["kick"]))).max() <= 5.0


@pytest.mark.parametrize("target", [0.3 + 0.1j, 0.1 - 0.2j, -0.25j, -0.2 + 0.05j])
@pytest.mark.parametrize("bend", [1, -1])
def test_solve_arm_reaches_the_target(target, bend):
    elbow, hand = solve_arm(0, target, bend)
    assert hand == pytest.approx(target)
    assert abs(elbow) == pytest.approx(UPPER_ARM)
    assert abs(hand - elbow) == pytest.approx(FOREARM)


@pytest.mark.parametrize("target", [2 + 0j, -5j, 0j])
def test_solve_arm_keeps_limb_lengths(target):
    elbow, hand = solve_arm(0, target)
    assert abs(elbow) == pytest.approx(UPPER_ARM)
    assert abs(hand - elbow) == pytest.approx(FOREARM)


def test_move_hands_moves_only_the_given_hand():
    joints = forward_kinematics(POSES["hold"])
    moved = move_hands(joints, near=joints.shoulder + 0.2)
    assert moved.near_arm != joints.near_arm
    assert moved.far_arm == joints.far_arm
