import pytest

from student.inference.detector import Detector


@pytest.fixture(scope="session")
def toy_detector(toy_checkpoint):
    """The untrained student with queries from proposals; split ua."""
    return Detector.open(toy_checkpoint, "cpu")


@pytest.fixture(scope="session")
def published_detector(published_checkpoint):
    """A small detector from a file in the published form, without a split."""
    return Detector.open(published_checkpoint, "cpu")


@pytest.fixture(params=["toy", "published"])
def each_detector(request):
    return request.getfixturevalue(f"{request.param}_detector")
