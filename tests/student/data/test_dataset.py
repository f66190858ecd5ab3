import pickle

import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.ops import box_convert
from torchvision.transforms import v2
from training import make_targets

from pipeline.splits import load_split
from student.data.dataset import TrainingBatches, collate, make_sample, normalise_batch
from student.data.targets import PAIR_FIELDS, PROPOSAL_FIELDS, TARGET_FIELDS
from student.data.transforms import (
    NUM_RAND,
    build_augmentation,
    normalise,
)
from student.models.backbone import IMAGENET
from student.models.padding import pad_images, stack_images
from student.utils.workers import init_worker

HUMAN, THING, FOUND = (20, 30, 70, 200), (200, 40, 280, 110), (300, 210, 380, 290)
SIZE = (300, 400)


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float32).view(-1, 4)


def image_targets(humans, objects, found=()):
    count = len(humans)
    return make_targets(
        torch.arange(count) % 2 == 0,
        human_boxes=boxes(*humans),
        object_boxes=boxes(*objects),
        teacher_probs=(torch.arange(count * 3).float().view(count, 3) + 1) / 100,
        region_embeddings=torch.zeros(count, 0),
        proposal_boxes=boxes(*found),
        proposal_labels=torch.full((len(found),), 4),
        proposal_images=torch.zeros(len(found), dtype=torch.int64),
    )


def picture(*rectangles):
    """A black image with one rectangle in every colour channel."""
    pixels = torch.zeros(3, *SIZE, dtype=torch.uint8)
    for channel, (left, top, right, bottom) in enumerate(rectangles):
        pixels[channel, top:bottom, left:right] = 255
    return pixels


def corners(sample, relative):
    """Boxes of a sample in its own pixels."""
    height, width = sample.image.shape[-2:]
    scale = torch.tensor([width, height, width, height])
    return box_convert(relative, "cxcywh", "xyxy") * scale


def bright(channel):
    """Bounds of the bright rectangle of a channel; None where it was cropped away."""
    channel = channel.float() / 255
    middle = (channel.max() + channel.min()) / 2
    if channel.max() - channel.min() < 0.2:
        return None
    rows, columns = torch.nonzero(channel > middle, as_tuple=True)
    ends = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return torch.tensor([int(end) for end in ends]).float()


def is_cut(rectangle):
    return rectangle is None or (rectangle[2:] - rectangle[:2]).min() < 2


def assert_near(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1.5)


def drawn(augmentation):
    """The augmentation, with random numbers from torch's generator."""
    return lambda values: augmentation(values, torch.rand(NUM_RAND).numpy())


TRANSFORMS = {
    "flip": v2.RandomHorizontalFlip(1.0),
    "toy": drawn(build_augmentation("toy")),
    "published": drawn(build_augmentation("published")),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_boxes_are_transformed_with_the_pixels(name):
    image, targets = picture(HUMAN, THING, FOUND), image_targets([HUMAN], [THING], [FOUND])
    kept = cut = 0
    for seed in range(20):
        torch.manual_seed(seed)
        sample = make_sample("a.jpg", image, targets, TRANSFORMS[name])
        human, thing, found = (bright(channel) for channel in sample.image)
        if len(sample.targets):
            assert_near(corners(sample, sample.targets.human_boxes)[0], human)
            assert_near(corners(sample, sample.targets.object_boxes)[0], thing)
            kept += 1
        else:
            assert is_cut(human) or is_cut(thing)
            cut += 1
        if len(sample.targets.proposal_boxes):
            assert_near(corners(sample, sample.targets.proposal_boxes)[0], found)
        else:
            assert is_cut(found)
    assert kept and (cut > 0) == (name == "published")


class Window:
    """Crops a fixed window."""

    def __init__(self, *window):
        self.window = window

    def __call__(self, values):
        return {name: v2.functional.crop(value, *self.window) for name, value in values.items()}


def test_a_crop_removes_pairs_and_keeps_the_fields_of_others():
    pairs = [
        (HUMAN, THING),  # the object is outside
        (HUMAN, (60, 40, 130, 110)),  # both inside, the object in part
        ((90, 0, 140, 99), (10, 10, 50, 50)),  # both inside
        ((99.5, 0, 140, 99), (10, 10, 50, 50)),  # half a pixel of the person is left
    ]
    targets = image_targets([pair[0] for pair in pairs], [pair[1] for pair in pairs],
                            [HUMAN, FOUND])  # fmt: skip
    sample = make_sample("a.jpg", picture(), targets, Window(0, 0, 100, 100))
    assert sample.image.shape == (3, 100, 100)
    assert sample.targets.object_labels.tolist() == [1, 2]
    assert sample.targets.verb_labels.tolist() == targets.verb_labels[[1, 2]].tolist()
    assert sample.targets.teacher_probs.tolist() == targets.teacher_probs[[1, 2]].tolist()
    assert sample.targets.seen.tolist() == [False, True]
    left = torch.tensor([[20.0, 30, 70, 100], [90, 0, 100, 99]])
    torch.testing.assert_close(corners(sample, sample.targets.human_boxes), left)
    assert sample.targets.proposal_labels.tolist() == [4]
    torch.testing.assert_close(corners(sample, sample.targets.proposal_boxes), left[:1])


@pytest.mark.parametrize("transform", [TRANSFORMS["flip"], Window(0, 0, 250, 100), v2.Identity()])
def test_an_empty_object_box_stays_empty(transform):
    targets = image_targets([HUMAN, HUMAN], [(0, 0, 0, 0), (30, 30, 90, 90)])
    sample = make_sample("a.jpg", picture(), targets, transform)
    assert len(sample.targets) == 2
    assert sample.targets.object_boxes[0].tolist() == [0, 0, 0, 0]
    assert (sample.targets.object_boxes[1] > 0).all()


def test_normalise_batch_equals_normalise_of_single_images():
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((9, 14), (12, 7))]
    pixels, sizes = stack_images(images, 8)
    assert pixels.dtype == torch.uint8 and sizes == ((9, 14), (12, 7))
    found, padding = normalise_batch(pixels, sizes)
    expected, mask = pad_images([normalise(image) for image in images], 8)
    assert found.shape == (2, 3, 16, 16)
    assert torch.equal(found, expected) and torch.equal(padding, mask)
    assert normalise_batch(*stack_images(images[:1]))[1] is None
    white = normalise(torch.full((3, 2, 2), 255, dtype=torch.uint8))[:, 0, 0]
    expected = (1 - torch.tensor(IMAGENET.mean)) / torch.tensor(IMAGENET.std)
    torch.testing.assert_close(white, expected)


@pytest.fixture(scope="module")
def make(make_images, vocabulary):
    split = load_split(vocabulary, "ua")
    return lambda seed=0: make_images(split, build_augmentation("toy"), seed)


def equal(first, second):
    pairs = [(vars(one.targets)[name] for one in (first, second)) for name in TARGET_FIELDS]
    pairs.append((first.image, second.image))
    return first.image_id == second.image_id and all(torch.equal(*pair) for pair in pairs)


def test_a_sample_depends_on_seed_epoch_and_index_alone(make):
    images = make()
    first = images[0, 5]
    torch.rand(17)
    images[0, 6]
    before = torch.get_rng_state()
    assert equal(first, images[0, 5])
    assert torch.equal(before, torch.get_rng_state())
    assert equal(first, make()[0, 5])
    assert not equal(first, images[1, 5]) and not equal(first, make(seed=1)[0, 5])
    # As spawned workers get the images.
    assert equal(first, pickle.loads(pickle.dumps(images))[0, 5])


def assert_equal_batches(found, expected):
    assert (found.image_ids, found.sizes) == (expected.image_ids, expected.sizes)
    assert torch.equal(found.pixels, expected.pixels)
    for name in TARGET_FIELDS:
        value, other = getattr(found.targets, name), getattr(expected.targets, name)
        assert value.dtype == other.dtype and torch.equal(value, other), name


def test_workers_collate_the_same_batches(make):
    batches = TrainingBatches(make(), 8)
    steps = [([(epoch, index) for index in range(8)], (130, 20)) for epoch in (0, 1, 3)]
    loader = DataLoader(
        batches, sampler=steps, batch_size=None, num_workers=2, worker_init_fn=init_worker
    )
    for found, step in zip(loader, steps, strict=True):
        assert_equal_batches(found, batches[step])
        assert found.pixels.shape == (8, 3, 136, 128)


def test_a_batch_has_all_samples(make_images, vocabulary):
    """The samples have different sizes and numbers of pairs and detected boxes."""
    images = make_images(load_split(vocabulary, "ua"), build_augmentation("published"))
    samples = [images[0, index] for index in range(4)]
    batch = collate(samples)
    assert len(batch) == 4 and len(set(batch.sizes)) > 1
    for row, (sample, (height, width)) in enumerate(zip(samples, batch.sizes, strict=True)):
        assert torch.equal(batch.pixels[row, :, :height, :width], sample.image)
        in_image = batch.targets.proposal_images == row
        for name in PROPOSAL_FIELDS[:2]:
            found = getattr(batch.targets, name)[in_image]
            assert torch.equal(found, getattr(sample.targets, name))
        for name in PAIR_FIELDS:
            found = getattr(batch.targets, name)[row, batch.targets.pair_mask[row]]
            assert torch.equal(found, getattr(sample.targets, name)), name
    assert len({len(sample.targets) for sample in samples}) > 1
    assert_equal_batches(pickle.loads(pickle.dumps(batch)), batch)


@pytest.mark.parametrize("name", ["published", "toy"])
def test_sizes_equal_those_of_the_samples(make_images, vocabulary, name):
    images = make_images(load_split(vocabulary, "ua"), build_augmentation(name))
    seen = set()
    for epoch in (0, 3):
        sizes = images.sizes(epoch)
        for index in range(0, len(images), 5):
            assert tuple(sizes[index]) == images[epoch, index].image.shape[-2:]
            seen.add(tuple(sizes[index]))
    assert (len(seen) > 4) == (name == "published")
