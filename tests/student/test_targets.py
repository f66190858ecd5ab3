import torch

from student.targets import TargetBatch, Targets


def make(count):
    return Targets(
        human_boxes=torch.rand(count, 4),
        object_boxes=torch.rand(count, 4),
        object_labels=torch.arange(count),
        hard=torch.ones(count, 3, dtype=torch.bool),
        soft=torch.rand(count, 3),
        seen=torch.ones(count, dtype=torch.bool),
        interactive=torch.ones(count, dtype=torch.bool),
    )


def test_images_without_pairs():
    batch = TargetBatch.of([make(0), make(0)])
    assert batch.counts == (0, 0) and batch.present.shape == (2, 0)
    assert batch.hard.shape == (2, 0, 3) and batch.human_boxes.shape == (2, 0, 4)


def test_padding_is_neither_present_nor_seen_nor_interactive():
    targets = [make(1), make(3), make(0)]
    batch = TargetBatch.of(targets)
    assert batch.counts == (1, 3, 0) and len(batch) == 3
    assert batch.present.sum(1).tolist() == [1, 3, 0]
    for padded in (batch.seen, batch.interactive, batch.hard.any(-1)):
        assert torch.equal(padded, batch.present)
    assert torch.equal(batch.soft[1], targets[1].soft)
    assert batch.soft[0, 1:].sum() == 0


def test_moving_keeps_every_field():
    target = make(2).to("cpu")
    assert len(target) == 2 and target.hard.dtype == torch.bool
