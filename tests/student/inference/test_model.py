import pytest
import torch

from pipeline.utils.errors import InputError
from pipeline.vocabulary import load_vocabulary
from student.inference.model import ModelSpec, load_inference_model


def test_a_run_has_vocabulary_and_split(toy_checkpoint, vocabulary):
    for path in (toy_checkpoint, toy_checkpoint / "checkpoint.pt"):
        loaded = load_inference_model(ModelSpec(path))
        assert loaded.vocabulary.digest() == vocabulary.digest()
        assert loaded.split.name == "ua" and loaded.unseen == set(loaded.split.unseen) != set()
        assert loaded.augmentation == "toy" and not loaded.model.training


def test_a_published_file_takes_the_vocabulary_of_its_class_counts(published_checkpoint):
    loaded = load_inference_model(ModelSpec(published_checkpoint))
    assert loaded.vocabulary.name == "toy" and loaded.augmentation == "published"
    assert loaded.split is None and loaded.unseen == frozenset()


def test_a_published_file_with_a_split(published_checkpoint, vocabulary):
    loaded = load_inference_model(ModelSpec(published_checkpoint, "toy", "ua"))
    assert loaded.unseen == set(vocabulary.splits["ua"]["unseen"])


def test_another_split_than_the_runs(toy_checkpoint):
    assert load_inference_model(ModelSpec(toy_checkpoint, split="full")).unseen == frozenset()


def test_class_counts_of_shipped_vocabularies_differ():
    sizes = [
        (one.num_verbs, one.num_objects)
        for one in map(load_vocabulary, ("hico-det", "vcoco", "toy"))
    ]
    assert len(set(sizes)) == len(sizes)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            "published",
            {"vocabulary": "hico-det"},
            "expected 80 objects and 117 verbs, as hico-det has, found 9 and 11",
        ),
        (
            "toy",
            {"vocabulary": "hico-det"},
            "student of the vocabulary hico-det, found toy",
        ),
        ("toy", {"split": "zz"}, "zz: no such split of toy"),
        ("published", {"vocabulary": "gone"}, "gone: no such vocabulary"),
    ],
)
def test_mismatches_give_a_one_line_error(request, kind, options, message):
    with pytest.raises(InputError) as caught:
        load_inference_model(ModelSpec(request.getfixturevalue(f"{kind}_checkpoint"), **options))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_class_counts_of_no_shipped_vocabulary(published_checkpoint, tmp_path):
    content = torch.load(published_checkpoint, weights_only=True)
    for name in ("weight", "bias"):
        head = content["model"][f"verb_class_embed.{name}"]
        content["model"][f"verb_class_embed.{name}"] = head[:5]
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(InputError, match=r"odd.pth: .* 9 and 11 \(toy\), found 9 and 5; give a"):
        load_inference_model(ModelSpec(tmp_path / "odd.pth"))


def test_moving_keeps_the_predictions(toy_checkpoint):
    loaded = load_inference_model(ModelSpec(toy_checkpoint))
    moved = loaded.to(torch.device("cpu"))
    image = torch.rand(3, 64, 64)
    with torch.no_grad():
        first, second = loaded.model([image]), moved.model([image])
    torch.testing.assert_close(first["pred_verb_logits"], second["pred_verb_logits"])
