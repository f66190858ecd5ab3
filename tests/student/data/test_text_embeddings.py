import numpy as np
import pytest
import torch

from pipeline.utils.errors import InputError
from pipeline.vocabulary import load_vocabulary
from student.config import get_preset
from student.data.text_embeddings import (
    build_text_embeddings,
    init_text_heads,
    text_head_options,
)
from student.models.text_head import TextVerbHead
from teacher_cache.reader.cache import open_cache
from teacher_cache.reader.format import TEACHER
from teacher_cache.writer.shard import write_teacher_file


def test_texts_of_verbs_and_objects_without_interaction_are_means(vocabulary, sentences):
    made = build_text_embeddings(vocabulary, sentences.embeddings, "cache")
    assert made.rows.shape == (vocabulary.num_objects, vocabulary.num_verbs)
    ids = vocabulary.interaction_ids
    for verb in range(vocabulary.num_verbs):
        own = sentences.embeddings[ids[verb][ids[verb] >= 0]].mean(0)
        for label in range(vocabulary.num_objects):
            hoi = ids[verb, label]
            wanted = sentences.embeddings[hoi] if hoi >= 0 else own / np.linalg.norm(own)
            found = made.texts[made.rows[label, verb]]
            torch.testing.assert_close(found, torch.from_numpy(wanted))
    labels = [label for _, label in vocabulary.interactions]
    assert made.labels.tolist() == labels + [vocabulary.num_objects] * vocabulary.num_verbs
    has_sentence = np.arange(len(labels)) != 3
    labels[3] = vocabulary.num_objects
    made = build_text_embeddings(vocabulary, sentences.embeddings, "cache", has_sentence)
    assert made.labels[: len(labels)].tolist() == labels


def test_a_verb_without_interaction_is_an_error():
    vcoco = load_vocabulary("vcoco")
    embeddings = np.ones((vcoco.num_interactions, 4), dtype=np.float32)
    with pytest.raises(InputError, match=r"cache: expected a sentence for every verb, .*stand"):
        build_text_embeddings(vcoco, embeddings, "cache")


@pytest.fixture
def initialised(vocabulary):
    """A text head initialised from a cache."""

    def make(folder):
        cache = open_cache(folder)
        head = TextVerbHead(get_preset("toy", 8, 11, 0).model)
        init_text_heads([head], cache, vocabulary)
        return head

    return make


def test_initial_probabilities_are_near_the_teachers(
    text_cache, vocabulary, sentences, initialised
):
    head = initialised(text_cache)
    made = build_text_embeddings(vocabulary, sentences.embeddings, "cache")
    assert torch.equal(head.texts, made.texts) and torch.equal(head.rows, made.rows)
    assert head.log_scale.exp().item() == pytest.approx(sentences.logit_scale)
    # Log probability and logit of a region differ by a log-sum, whose mean is the margin.
    differences = []
    cache = open_cache(text_cache)
    for image in cache.image_ids:
        own = cache[image]
        regions = own.embeddings.astype(np.float32)[own.region_indices]
        for region, label in zip(regions, own.pairs.object_labels, strict=True):
            verbs = np.flatnonzero(vocabulary.valid[:, label])
            verbs = verbs[verbs != vocabulary.no_interaction]
            logits = 10 * sentences.embeddings[vocabulary.interaction_ids[verbs, label]] @ region
            differences.append(np.log(np.exp(logits).sum()))
    assert head.margin.item() == pytest.approx(np.mean(differences) / 10, abs=1e-3)


def test_without_region_embeddings_the_texts_give_the_margin(
    tmp_path, make_cache, annotations, sentences, initialised
):
    folder = make_cache(tmp_path / "bare", annotations)
    write_teacher_file(folder / TEACHER, open_cache(folder).fingerprint, sentences)
    assert 0.5 < initialised(folder).margin < 1.2


def test_text_head_options(text_cache, vocabulary):
    cache = open_cache(text_cache)
    assert text_head_options({}, cache, vocabulary) == {}
    found = text_head_options({"verb_head": "text"}, cache, vocabulary)
    assert found["text_dim"] == 16 and found["num_texts"] == 61 and found["embedding_weight"] > 0
    assert found["text_model"] == cache.text_model
    assert text_head_options({"object_head": "text"}, cache, vocabulary) == found
    no_distillation = {"verb_head": "text", "distillation": False}
    assert text_head_options(no_distillation, cache, vocabulary)["embedding_weight"] == 0
    own = {"verb_head": "text", "embedding_weight": 0.3}
    assert text_head_options(own, cache, vocabulary)["embedding_weight"] == 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"embedding_weight": 1.0},
            "--embedding-weight: expected --verb-head or --object-head text as well",
        ),
        (
            {"verb_head": "text", "embedding_weight": 1.0, "distillation": False},
            "--embedding-weight: expected 0 with --no-distillation, found 1",
        ),
        ({"verb_head": "text"}, "expected text embeddings of a named model for --verb-head text"),
        ({"object_head": "text"}, "text embeddings of a named model for --object-head text"),
    ],
)
def test_errors_of_inconsistent_options(cache_path, vocabulary, options, message):
    with pytest.raises(InputError, match=message):
        text_head_options(options, open_cache(cache_path), vocabulary)


def test_an_embedding_weight_needs_region_embeddings(tmp_path, make_cache, annotations, vocabulary):
    cache = open_cache(make_cache(tmp_path / "cache", annotations, **{"clip.weights": "0" * 64}))
    with pytest.raises(InputError, match="expected region embeddings for --embedding-weight 1"):
        text_head_options({"verb_head": "text"}, cache, vocabulary)


def test_a_teacher_without_text_encoder(tmp_path, make_cache, annotations, vocabulary):
    parts = {"teacher": "own", "probabilities": "independent"}
    cache = open_cache(make_cache(tmp_path / "cache", annotations, **parts))
    assert cache.probabilities == "independent"
    with pytest.raises(InputError, match="expected text embeddings of a named model"):
        text_head_options({"verb_head": "text", "embedding_weight": 0.0}, cache, vocabulary)
    write_teacher_file(cache.path / TEACHER, cache.fingerprint, None)
    with pytest.raises(InputError, match="the teacher own has no text encoder"):
        assert cache.prompt_embeddings


def test_an_unknown_meaning_of_probabilities_is_refused(tmp_path, make_cache, annotations):
    folder = make_cache(tmp_path / "cache", annotations, probabilities="logits")
    with pytest.raises(InputError, match=r"parts.probabilities: expected softmax or independent"):
        open_cache(folder)
