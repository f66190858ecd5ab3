import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.errors import InputError
from pipeline.types import ImageRecord
from student.config import StudentConfig
from student.model import HOIDetector
from student.predict import predict

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(vocabulary):
    torch.manual_seed(0)
    return HOIDetector(
        StudentConfig.world(vocabulary.num_objects, vocabulary.num_verbs, vocabulary.person)
    )


@pytest.fixture
def records(tmp_path):
    """Pictures of two sizes."""
    rng = np.random.default_rng(0)
    made = []
    for row, (width, height) in enumerate([(128, 128), (128, 128), (96, 64)]):
        path = tmp_path / f"{row}.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        made.append(ImageRecord(path.name, path))
    return made


def test_no_images(model, vocabulary):
    assert predict(model, [], vocabulary, "world", CPU) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_every_image_is_answered_in_order_and_in_its_own_pixels(
    model, vocabulary, records, workers
):
    found = predict(model, records, vocabulary, "world", CPU, batch_size=1, workers=workers)
    assert [one.image_id for one in found] == ["0.png", "1.png", "2.png"]
    for one, (width, height) in zip(found, [(128, 128), (128, 128), (96, 64)], strict=True):
        assert len(one.scores) and (one.boxes >= 0).all()
        assert (one.boxes[:, [0, 2]] <= width).all() and (one.boxes[:, [1, 3]] <= height).all()
    assert not model.training


def test_batches_change_nothing(model, vocabulary, records):
    alone = predict(model, records[:2], vocabulary, "world", CPU, batch_size=1)
    together = predict(model, records[:2], vocabulary, "world", CPU, batch_size=2)
    for first, second in zip(alone, together, strict=True):
        np.testing.assert_allclose(first.scores, second.scores, atol=1e-5)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_one_line(model, vocabulary, records, workers):
    records[1].path.write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"1.png: expected an image") as caught:
        predict(model, records, vocabulary, "world", CPU, workers=workers)
    assert "\n" not in str(caught.value)
