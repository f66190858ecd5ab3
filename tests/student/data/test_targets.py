import torch

from student.data.targets import Targets


def make(count, found=0):
    return Targets(
        human_boxes=torch.rand(count, 4),
        object_boxes=torch.rand(count, 4),
        object_labels=torch.arange(count),
        verb_labels=torch.ones(count, 3, dtype=torch.bool),
        teacher_probs=torch.rand(count, 3),
        seen=torch.ones(count, dtype=torch.bool),
        interactive=torch.ones(count, dtype=torch.bool),
        region_embeddings=torch.zeros(count, 0),
        detected_boxes=torch.rand(found, 4),
        detected_labels=torch.arange(found),
        detected_images=torch.zeros(found, dtype=torch.int64),
    )


def test_images_without_pairs():
    batch = Targets.collate([make(0), make(0)])
    assert batch.num_pairs.tolist() == [[0], [0]] and batch.pair_mask.shape == (2, 0)
    assert batch.verb_labels.shape == (2, 0, 3) and batch.human_boxes.shape == (2, 0, 4)


def test_padding_is_neither_present_nor_seen_nor_interactive():
    targets = [make(1), make(3), make(0)]
    batch = Targets.collate(targets)
    assert batch.num_pairs.tolist() == [[1], [3], [0]] and len(batch) == 3
    assert batch.pair_mask.sum(1).tolist() == [1, 3, 0]
    for padded in (batch.seen, batch.interactive, batch.verb_labels.any(-1)):
        assert torch.equal(padded, batch.pair_mask)
    assert torch.equal(batch.teacher_probs[1], targets[1].teacher_probs)
    assert batch.teacher_probs[0, 1:].sum() == 0


def test_detected_boxes_stand_one_image_after_the_other():
    targets = [make(1, found=2), make(2), make(0, found=3)]
    batch = Targets.collate(targets)
    assert batch.detected_images.tolist() == [0, 0, 2, 2, 2]
    assert torch.equal(batch.detected_boxes[2:], targets[2].detected_boxes)
    assert batch.detected_labels.tolist() == [0, 1, 0, 1, 2]


def test_a_selection_takes_all_fields_of_its_rows():
    target = make(3, found=2)
    kept = target.select(torch.tensor([True, False, True]), torch.tensor([False, True]))
    assert kept.object_labels.tolist() == [0, 2] and kept.detected_labels.tolist() == [1]
    assert torch.equal(kept.teacher_probs, target.teacher_probs[[0, 2]]) and len(kept.seen) == 2
    assert kept.exhaustive_labels is target.exhaustive_labels
