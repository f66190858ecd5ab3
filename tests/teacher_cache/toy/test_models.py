import numpy as np
import pytest
import torch
from torchvision.transforms.functional import normalize

from pipeline.types import Annotation
from teacher_cache.teachers.word_tokenizer import WordTokenizer
from teacher_cache.toy.models import (
    IMAGE_SIZE,
    MEAN,
    STD,
    augment,
    contrastive_loss,
    train_detector,
    train_teacher,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normalised(rows):
    rows = np.array(rows, dtype=np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def cross_entropy(logits, targets):
    logits = logits - logits.max(1, keepdims=True)
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -(targets * logs).sum(1).mean()


def test_contrastive_loss_of_equal_captions():
    images = normalised([[1, 2, 0], [0, 1, 1], [2, 0, 1], [1, 1, 1]])
    texts = normalised([[1, 0, 0], [0, 1, 2]])
    captions = np.array([0, 1, 0, 0])
    logits = 7 * images @ texts.T
    to_text = cross_entropy(logits, np.eye(2)[captions])
    # The first caption belongs to three images, each an equally correct match.
    to_image = cross_entropy(logits.T, np.array([[1 / 3, 0, 1 / 3, 1 / 3], [0, 1, 0, 0]]))
    loss = contrastive_loss(
        torch.from_numpy(images),
        torch.from_numpy(texts),
        torch.from_numpy(captions),
        torch.tensor(7.0, dtype=torch.float64),
    )
    assert loss.item() == pytest.approx((to_text + to_image) / 2, rel=1e-9)


def random_crops(count, seed=0):
    shape = (count, 3, IMAGE_SIZE, IMAGE_SIZE)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(seed))


def test_augmentation_depends_only_on_its_generator():
    state, crops = torch.get_rng_state(), random_crops(4)
    first = augment(crops, 3, generator(1))
    assert torch.equal(crops, random_crops(4)) and first.shape == crops.shape
    assert first.dtype == torch.float32 and first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, augment(random_crops(4), 3, generator(1)))
    assert not torch.equal(first, augment(random_crops(4), 3, generator(2)))
    assert torch.equal(state, torch.get_rng_state())


def test_shifts_and_flips_move_pixels():
    dot = torch.zeros(64, 3, 16, 16, dtype=torch.uint8)
    dot[:, :, 8, 4] = 255
    moved = augment(dot, 2, generator())
    positions = {tuple(divmod(int(image.sum(0).argmax()), 16)) for image in moved}
    assert {row for row, _ in positions} == {6, 7, 8, 9, 10}
    assert {column for _, column in positions} == {2, 3, 4, 5, 6, 9, 10, 11, 12, 13}


def train_two_colours(steps, seed=0):
    """A teacher trained on red and blue images, the images, the tokenizer and the notes."""
    tokenizer, notes = WordTokenizer(["blue", "red"], 4), []
    crops = torch.zeros(32, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
    crops[0::2, 0], crops[1::2, 2] = 200, 200
    model = train_teacher(
        crops,
        ["red", "blue"] * 16,
        tokenizer,
        steps,
        generator(seed),
        torch.device("cpu"),
        lambda count, note: notes.append((count, note)),
        batch_size=12,
    )
    return model, crops, tokenizer, notes


def test_a_teacher_learns_two_captions():
    model, crops, tokenizer, notes = train_two_colours(steps=40)
    assert not model.training
    assert [count for count, _ in notes] == [12] * 40
    assert notes[0][1].startswith("loss ") and notes[1][1] == ""
    with torch.no_grad():
        images = model.encode_image(normalize(crops[:4].float() / 255, MEAN, STD), normalize=True)
        texts = model.encode_text(tokenizer(["red", "blue"]), normalize=True)
    assert (images @ texts.T).argmax(1).tolist() == [0, 1, 0, 1]


def test_teacher_training_depends_only_on_its_generator():
    state = torch.get_rng_state()
    weights = train_two_colours(steps=3)[0].state_dict()
    assert torch.equal(state, torch.get_rng_state())
    again, other = (
        train_two_colours(steps=3)[0].state_dict(),
        train_two_colours(steps=3, seed=1)[0].state_dict(),
    )
    assert all(torch.equal(value, again[name]) for name, value in weights.items())
    assert not torch.equal(weights["text_projection"], other["text_projection"])


def test_detector_training_depends_only_on_its_generator(vocabulary):
    images = torch.randint(0, 256, (6, 3, 128, 128), dtype=torch.uint8)
    boxes = np.array([[10, 10, 60, 90], [50, 40, 100, 80]], dtype=np.float32)
    labels = np.array([vocabulary.person, 1])
    annotations = [
        Annotation(f"{row}.jpg", boxes, labels, np.zeros((0, 3), dtype=np.int64))
        for row in range(6)
    ]

    def train():
        reports = []
        model = train_detector(
            images,
            annotations,
            vocabulary,
            1,
            torch.Generator().manual_seed(3),
            torch.device("cpu"),
            lambda count, note: reports.append((count, note)),
            batch_size=2,
        )
        return model, reports

    state = torch.get_rng_state()
    model, reports = train()
    assert not model.training and torch.equal(state, torch.get_rng_state())
    assert [count for count, _ in reports] == [2, 2, 2]
    again, _ = train()
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
