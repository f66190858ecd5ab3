import pytest
import torch

from pipeline.utils.errors import InputError
from pipeline.vocabulary import load_vocabulary
from student.inference.model import ModelSource, ready_model


def test_a_run_knows_everything(world_checkpoint, vocabulary):
    for path in (world_checkpoint, world_checkpoint / "checkpoint.pt"):
        opened = ready_model(ModelSource(path))
        assert opened.vocabulary.digest() == vocabulary.digest()
        assert opened.split.name == "ua" and opened.unseen == set(opened.split.unseen) != set()
        assert opened.augmentation == "world" and not opened.model.training


def test_a_published_file_gets_the_vocabulary_of_its_sizes(published_checkpoint):
    opened = ready_model(ModelSource(published_checkpoint))
    assert opened.vocabulary.name == "world" and opened.augmentation == "published"
    assert opened.split is None and opened.unseen == frozenset()


def test_a_published_file_with_a_split(published_checkpoint, vocabulary):
    opened = ready_model(ModelSource(published_checkpoint, "world", "ua"))
    assert opened.unseen == set(vocabulary.splits["ua"]["unseen"])


def test_another_split_than_the_runs(world_checkpoint):
    assert ready_model(ModelSource(world_checkpoint, split="full")).unseen == frozenset()


def test_sizes_of_the_shipped_vocabularies_differ():
    sizes = [
        (one.num_verbs, one.num_objects)
        for one in map(load_vocabulary, ("hico-det", "vcoco", "world"))
    ]
    assert len(set(sizes)) == len(sizes)


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        (
            "published",
            {"vocabulary": "hico-det"},
            "expected 80 objects and 117 verbs, as hico-det has, found 9 and 11",
        ),
        (
            "world",
            {"vocabulary": "hico-det"},
            "student of the vocabulary hico-det, found world",
        ),
        ("world", {"split": "zz"}, "zz: no such split of world"),
        ("published", {"vocabulary": "gone"}, "gone: no such vocabulary"),
    ],
)
def test_what_does_not_fit_is_one_line(request, kind, options, says):
    with pytest.raises(InputError) as caught:
        ready_model(ModelSource(request.getfixturevalue(f"{kind}_checkpoint"), **options))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_sizes_of_no_shipped_vocabulary(published_checkpoint, tmp_path):
    content = torch.load(published_checkpoint, weights_only=True)
    for name in ("weight", "bias"):
        head = content["model"][f"verb_class_embed.{name}"]
        content["model"][f"verb_class_embed.{name}"] = head[:5]
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(InputError, match=r"odd.pth: .* 9 and 11 \(world\), found 9 and 5; name a"):
        ready_model(ModelSource(tmp_path / "odd.pth"))


def test_moving_keeps_the_answers(world_checkpoint):
    opened = ready_model(ModelSource(world_checkpoint))
    moved = opened.to(torch.device("cpu"))
    image = torch.rand(3, 64, 64)
    with torch.no_grad():
        first, second = opened.model([image]), moved.model([image])
    torch.testing.assert_close(first["pred_verb_logits"], second["pred_verb_logits"])
