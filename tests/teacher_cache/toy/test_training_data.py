import numpy as np

from pipeline.toy.scene import draw_scene
from pipeline.types import Annotation
from teacher_cache.teachers.prompts import interaction_prompts
from teacher_cache.toy.train import captioned_regions, draw_training_data


def test_an_image_without_interactions(vocabulary):
    empty = Annotation(
        "a.jpg", np.zeros((0, 4)), np.zeros(0, dtype=np.int64), np.zeros((0, 3), dtype=np.int64)
    )
    boxes, sentences = captioned_regions(empty, vocabulary, np.random.default_rng(0))
    assert boxes.shape == (0, 4) and sentences == []


def test_every_label_has_its_union_box_and_a_moved_one(vocabulary):
    _, annotation = draw_scene(0, "models", 4)
    boxes, sentences = captioned_regions(annotation, vocabulary, np.random.default_rng(0))
    assert len(boxes) == len(sentences) == 2 * len(annotation.hois)
    prompts = interaction_prompts(vocabulary)
    for row, (human, thing, verb) in enumerate(annotation.hois):
        pair = annotation.boxes[[human, thing]]
        union = np.concatenate([pair[:, :2].min(0), pair[:, 2:].max(0)])
        size = np.tile(union[2:] - union[:2], 2)
        np.testing.assert_allclose(boxes[2 * row], union, rtol=1e-6)
        moved = np.abs(boxes[2 * row + 1] - union) / size
        assert 0 < moved.max() <= 0.06
        (prompt,) = prompts[vocabulary.interaction_ids[verb, annotation.labels[thing]]]
        assert sentences[2 * row] == sentences[2 * row + 1] == prompt


def test_pictures_of_several_chunks_stand_in_order():
    pictures = draw_training_data(2, 53, 24)
    assert pictures.images.shape == (53, 128, 128, 3) and pictures.images.dtype == np.uint8
    assert len(pictures.crops) == len(pictures.captions)
    assert pictures.crops.shape[1:] == (24, 24, 3)
    for index in (0, 49, 50, 52):
        image, annotation = draw_scene(2, "models", index)
        np.testing.assert_array_equal(pictures.images[index], np.asarray(image))
        assert pictures.annotations[index].image_id == annotation.image_id
    labels = sum(len(annotation.hois) for annotation in pictures.annotations)
    assert len(pictures.crops) == 2 * labels
    names = {annotation.image_id for annotation in pictures.annotations}
    assert not names & {draw_scene(2, part, 0)[1].image_id for part in ("train", "test")}
