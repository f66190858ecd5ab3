"""Where a student's weights start."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import InputError
from pipeline.weights import load_weights
from student.model import HOIDetector

# A torchvision detector keeps its body here; the student's is the same, called `body` where it is
# a ResNet.
DETECTOR_BODY, OWN_BODY = "backbone.body.", "body."


def start_from(model: HOIDetector, path: Path) -> str:
    """Loads a detector's backbone into a student.

    Args:
        model: changed in place.
        path: weights of a torchvision detector on the same backbone.

    Returns:
        One line saying what was taken.

    Raises:
        InputError: the file has no such backbone.
    """
    state = load_weights(path)
    body = {
        name.removeprefix(DETECTOR_BODY): value
        for name, value in state.items()
        if name.startswith(DETECTOR_BODY)
    }
    own = {
        name.removeprefix(OWN_BODY): value for name, value in model.backbone.state_dict().items()
    }
    # Frozen batch norm keeps no count of batches.
    body = {name: value for name, value in body.items() if not name.endswith("num_batches_tracked")}
    missing = sorted(own.keys() - body.keys())
    wrong = [name for name in own.keys() & body.keys() if own[name].shape != body[name].shape]
    if missing or wrong:
        what = f"backbone key {(missing or sorted(wrong))[0]} of the student's shape"
        raise InputError(f"{path}: expected {what}, found none ({len(state)} keys)")
    for name, value in own.items():
        value.copy_(body[name])
    left = len(state) - len(own)
    return f"{path.name}: {len(own)} backbone tensors taken, {left} others left"
