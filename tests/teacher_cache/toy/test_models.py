from contextlib import nullcontext

import numpy as np
import pytest
import torch

from teacher_cache.teachers.word_tokenizer import WordTokenizer
from teacher_cache.toy.models import (
    IMAGE_SIZE,
    TeacherTrainingConfig,
    augment,
    clip_config,
    contrastive_loss,
    normalise,
    train_teacher,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def unit(rows):
    rows = np.array(rows, dtype=np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def cross_entropy(logits, targets):
    logits = logits - logits.max(1, keepdims=True)
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -(targets * logs).sum(1).mean()


def test_the_loss_by_hand():
    images = unit([[1, 2, 0], [0, 1, 1], [2, 0, 1], [1, 1, 1]])
    texts = unit([[1, 0, 0], [0, 1, 2]])
    captions = np.array([0, 1, 0, 0])
    logits = 7 * images @ texts.T
    to_text = cross_entropy(logits, np.eye(2)[captions])
    # The first caption belongs to three images, each as right as the others.
    to_image = cross_entropy(logits.T, np.array([[1 / 3, 0, 1 / 3, 1 / 3], [0, 1, 0, 0]]))
    loss = contrastive_loss(
        torch.from_numpy(images),
        torch.from_numpy(texts),
        torch.from_numpy(captions),
        torch.tensor(7.0, dtype=torch.float64),
    )
    assert loss.item() == pytest.approx((to_text + to_image) / 2, rel=1e-9)


def test_with_distinct_captions_it_is_clips_loss():
    images, texts = (torch.nn.functional.normalize(torch.randn(5, 8, generator=generator(seed)))
                     for seed in (1, 2))  # fmt: skip
    logits, rows = 10 * images @ texts.T, torch.arange(5)
    entropy = torch.nn.functional.cross_entropy
    expected = (entropy(logits, rows) + entropy(logits.T, rows)) / 2
    torch.testing.assert_close(contrastive_loss(images, texts, rows, torch.tensor(10.0)), expected)


def crops(count, seed=0):
    shape = (count, 3, IMAGE_SIZE, IMAGE_SIZE)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(seed))


@pytest.mark.parametrize("max_shift", [0, 3])
def test_augmented_crops_stay_pictures(max_shift):
    before = crops(6)
    images = augment(before, max_shift, generator())
    assert images.shape == before.shape and images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1
    assert torch.equal(before, crops(6))


def test_augmentation_follows_its_generator():
    state = torch.get_rng_state()
    first = augment(crops(4), 3, generator(1))
    assert torch.equal(first, augment(crops(4), 3, generator(1)))
    assert not torch.equal(first, augment(crops(4), 3, generator(2)))
    assert torch.equal(state, torch.get_rng_state())


def test_shifts_and_flips_move_pixels():
    dot = torch.zeros(64, 3, 16, 16, dtype=torch.uint8)
    dot[:, :, 8, 4] = 255
    moved = augment(dot, 2, generator())
    places = {tuple(divmod(int(image.sum(0).argmax()), 16)) for image in moved}
    assert {row for row, _ in places} == {6, 7, 8, 9, 10}
    assert {column for _, column in places} == {2, 3, 4, 5, 6, 9, 10, 11, 12, 13}


def train(steps, seed=0):
    """A teacher of red and blue pictures, what it learned from, and what it told."""
    tokenizer, notes = WordTokenizer(["blue", "red"], 4), []
    pictures = torch.zeros(32, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
    pictures[0::2, 0], pictures[1::2, 2] = 200, 200
    model = train_teacher(
        pictures,
        ["red", "blue"] * 16,
        tokenizer,
        TeacherTrainingConfig(steps=steps, batch_size=12),
        generator(seed),
        torch.device("cpu"),
        nullcontext,
        notes.append,
    )
    return model, pictures, tokenizer, notes


def test_it_learns_to_tell_two_captions_apart():
    model, pictures, tokenizer, notes = train(steps=40)
    assert not model.training
    assert len(notes) == 40 and notes[0].startswith("loss ") and notes[1] == ""
    with torch.no_grad():
        images = model.encode_image(normalise(pictures[:4].float() / 255), normalize=True)
        texts = model.encode_text(tokenizer(["red", "blue"]), normalize=True)
    assert (images @ texts.T).argmax(1).tolist() == [0, 1, 0, 1]


def test_training_follows_its_generator():
    state = torch.get_rng_state()
    weights = train(steps=3)[0].state_dict()
    assert torch.equal(state, torch.get_rng_state())
    again, other = train(steps=3)[0].state_dict(), train(steps=3, seed=1)[0].state_dict()
    assert all(torch.equal(value, again[name]) for name, value in weights.items())
    assert not torch.equal(weights["text_projection"], other["text_projection"])


def test_the_configuration_follows_the_tokenizer():
    config = clip_config(WordTokenizer(["a", "b"], 7))
    assert config["text_cfg"]["vocab_size"] == 5 and config["text_cfg"]["context_length"] == 7
