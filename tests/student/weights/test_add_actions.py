"""Actions added to a student with a text verb head after its training."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.splits import load_split
from pipeline.utils.errors import InputError
from pipeline.vocabulary import vocabulary_from_dict
from student.cli import main as train
from student.data.text_embeddings import build_text_embeddings
from student.engine.evaluate import evaluate_checkpoint
from student.inference.cli import main as predict
from student.inference.detector import Detector
from student.inference.export import DetectorGraph, trace_detector
from student.models.backbone import IMAGENET
from student.weights.checkpoint_file import CHECKPOINT, load_checkpoint, save_checkpoint
from student.weights.load import load_student


@pytest.fixture
def embedding():
    """Embedding that all queries of the student below predict."""
    direction = np.random.default_rng(8).standard_normal(16)
    return (direction / np.linalg.norm(direction)).astype(np.float32)


@pytest.fixture
def run(text_run, tmp_path, embedding):
    """A student whose queries all predict one embedding, for every image."""
    shutil.copytree(text_run, tmp_path / "run")
    file = tmp_path / "run" / CHECKPOINT
    checkpoint = load_checkpoint(file)
    checkpoint.weights["verb_head.projection.weight"].zero_()
    checkpoint.weights["verb_head.projection.bias"].copy_(torch.from_numpy(embedding))
    save_checkpoint(file, checkpoint)
    return tmp_path / "run"


@pytest.fixture
def things(vocabulary):
    return [
        name for label, name in enumerate(vocabulary.objects) if vocabulary.valid[:, label].any()
    ]


@pytest.fixture
def prompts(write_new_prompts, things, embedding):
    """Juggling has the embedding of the queries, and swallowing the opposite one."""
    return write_new_prompts(
        {
            "swallow": ("swallowing", dict.fromkeys(things, -embedding)),
            "juggle": ("juggling", dict.fromkeys(things, embedding)),
        }
    )


@pytest.fixture
def command(monkeypatch, capsys):
    """`command(main, *arguments)` returns (exit code, stdout, stderr)."""

    def call(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["eoid", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    return call


def test_the_best_matching_sentence_wins(run, prompts, write_image):
    found = Detector.open(run, device="cpu", prompts=prompts)(
        write_image("a.png"), threshold=0, top=500
    )
    actions = np.array([found.vocabulary.verbs[verb] for verb in found.verbs])
    assert set(actions[:3]) == {"juggle"}
    best = {verb: found.scores[actions == verb].max(initial=0) for verb in set(actions)}
    assert best["juggle"] == max(best.values()) > 3 * best.get("swallow", 0)
    assert found.unseen[actions == "juggle"].all() and found.actions[0].startswith("juggle ")


def test_trained_actions_keep_their_scores(run, prompts, things):
    plain = load_student(run / CHECKPOINT)
    more = load_student(run / CHECKPOINT, None, None, prompts)
    old, new = plain.vocabulary, more.vocabulary
    assert new.verbs == (*old.verbs, "swallow", "juggle")
    assert new.interactions[: old.num_interactions] == old.interactions
    assert new.num_interactions == old.num_interactions + 2 * len(things)
    image = torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = plain.model([image]), more.model([image])
    for name in ("pred_human_boxes", "pred_object_logits", "pred_verb_embeddings"):
        assert torch.equal(before[name], after[name])
    logits = after["pred_verb_logits"]
    assert torch.equal(before["pred_verb_logits"], logits[..., : old.num_verbs])
    assert logits.shape[-1] == more.model.config.num_verbs == old.num_verbs + 2
    assert more.split.unseen[: len(plain.split.unseen)] == plain.split.unseen
    assert not more.split.distilled_verbs[old.num_verbs :].any()


def test_embeddings_of_another_size(run, write_new_prompts, things, embedding):
    wider = dict.fromkeys(things, np.append(embedding, np.float32(0)))
    file = write_new_prompts({"juggle": ("juggling", wider)})
    with pytest.raises(InputError, match=rf"{file}: embeddings: .*size 16, found .*size 17"):
        load_student(run / CHECKPOINT, prompts=file)


def test_a_known_action_with_another_object(run, write_new_prompts, vocabulary, embedding):
    ride = vocabulary.verbs.index("ride")
    assert not vocabulary.valid[ride, vocabulary.objects.index("box")]
    path = write_new_prompts({"ride": ("riding", {"box": embedding, "horse": -embedding})})
    more = load_student(run / CHECKPOINT, None, None, path)
    assert more.vocabulary.verbs == vocabulary.verbs
    assert more.vocabulary.interactions[vocabulary.num_interactions :] == (
        (ride, vocabulary.objects.index("box")),
    )
    head = more.model.verb_head
    row = head.rows[vocabulary.objects.index("box"), ride]
    assert torch.equal(head.texts[row], torch.from_numpy(embedding))
    # The sentence about riding horses that the student was trained with is kept.
    own = head.rows[vocabulary.objects.index("horse"), ride]
    assert not torch.equal(head.texts[own], torch.from_numpy(-embedding))


def reduced(vocabulary, without):
    """The vocabulary without a verb, renumbered without gaps."""
    value = vocabulary.to_dict()
    lost = vocabulary.verbs.index(without)
    value["verbs"] = [verb for verb in value["verbs"] if verb["name"] != without]
    pairs = [(v, o) for v, o in vocabulary.interactions if v != lost]
    value["interactions"] = [[v - (v > lost), o] for v, o in pairs]
    return {**value, "splits": {}, "rare": [], "name": "smaller"}


@pytest.mark.parametrize("by", ["name", "form"])
def test_actions_of_a_dataset_are_matched_by_name_or_ing_form(
    run, write_new_prompts, things, vocabulary, embedding, by
):
    value = vocabulary.to_dict()
    value["verbs"][3] = {"name": "juggle", "ing": "juggling"}
    value["verbs"] = value["verbs"][::-1]
    last = vocabulary.num_verbs - 1
    value["interactions"] = [[last - verb, label] for verb, label in value["interactions"]]
    wanted = vocabulary_from_dict({**value, "splits": {}}, "other")
    names = {"name": ("juggle", "tossing"), "form": ("toss", "juggling")}[by]
    path = write_new_prompts({names[0]: (names[1], dict.fromkeys(things, embedding))})
    more = load_student(run / CHECKPOINT, wanted, None, path)
    plain = load_student(run / CHECKPOINT)
    assert more.vocabulary is wanted
    image = torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = plain.model([image]), more.model([image])
    mine, theirs = after["pred_verb_logits"], before["pred_verb_logits"]
    label = before["pred_object_logits"][0, :, :-1].argmax(-1)
    for verb, name in enumerate(wanted.verbs):
        if name != "juggle":
            old = theirs[0, :, vocabulary.verbs.index(name)]
            fits = torch.from_numpy(wanted.valid[verb])[label]
            torch.testing.assert_close(mine[0, fits, verb], old[fits])
    unseen = {wanted.interaction_name(hoi) for hoi in more.split.unseen}
    names = map(wanted.interaction_name, range(wanted.num_interactions))
    assert {name for name in names if name.startswith("juggle ")} <= unseen
    assert {vocabulary.interaction_name(hoi) for hoi in plain.split.unseen} <= unseen


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"text_model": "f" * 64}, r"new.h5: expected"),
        ({"objects": ("piano",)}, "expected objects that .* object head is linear, found piano"),
    ],
)
def test_prompts_that_do_not_fit_the_student(run, write_new_prompts, embedding, damage, message):
    path = write_new_prompts({"juggle": ("juggling", {"ball": embedding})}, **damage)
    with pytest.raises(InputError, match=message):
        Detector.open(run, prompts=path)


def test_a_linear_verb_head_is_refused(toy_checkpoint, published_checkpoint, prompts):
    for path in (toy_checkpoint, published_checkpoint):
        with pytest.raises(InputError, match="expected a student trained with --verb-head text"):
            Detector.open(path, prompts=prompts)


def test_an_action_without_a_sentence_is_refused(run, prompts, vocabulary):
    verbs = ("yodel", *vocabulary.verbs[1:])
    wanted = replace(vocabulary, verbs=verbs, verb_ings=("yodelling", *vocabulary.verb_ings[1:]))
    with pytest.raises(InputError, match="found none for yodel"):
        load_student(run / CHECKPOINT, wanted, None, prompts)
    fewer = replace(vocabulary, objects=("person", "cow", *vocabulary.objects[2:]))
    with pytest.raises(InputError, match="object head is linear, found cow"):
        load_student(run / CHECKPOINT, fewer, None, prompts)


def test_predicting_on_the_command_line(run, prompts, write_image, dataset_root, command, tmp_path):
    picture, out = write_image("a.png"), tmp_path / "out"
    arguments = (run, picture, "--out", out, "--device", "cpu", "--threshold", 0, "--top", 3)
    code, _, err = command(predict, *arguments, "--prompts", prompts)
    assert code == 0, err
    found = json.loads((out / "a.json").read_text())["interactions"]
    assert {one["verb"] for one in found} == {"juggle"} and all(one["unseen"] for one in found)
    settings = json.loads((out / "settings.json").read_text())
    assert settings["vocabulary"] == "toy+prompts" and len(settings["prompts"]) == 64
    # Results with and without the added actions must not be mixed in one folder.
    code, _, err = command(predict, *arguments)
    assert code == 2 and "expected results with the same settings" in err
    arguments = (run, "--data", dataset_root, "--out", tmp_path / "part", "--device", "cpu")
    code, _, err = command(predict, *arguments, "--prompts", prompts)
    assert code == 0, err
    assert len(json.loads((tmp_path / "part/predictions.json").read_text())) == 6


def test_an_evaluation_scores_the_new_action(
    text_run, write_new_prompts, dataset_root, vocabulary, command, tmp_path, sentences
):
    """A student whose vocabulary lacks throwing, and a dataset with it."""
    file = text_run / CHECKPOINT
    checkpoint = load_checkpoint(file)
    smaller = vocabulary_from_dict(reduced(vocabulary, "throw"), "smaller")
    kept = [h for h, (v, _) in enumerate(vocabulary.interactions) if vocabulary.verbs[v] != "throw"]
    student = load_student(file, None, None, None)
    student_path = write_smaller(tmp_path, checkpoint, student.model, smaller, kept, sentences)
    throw = vocabulary.verbs.index("throw")
    own = {
        vocabulary.objects[label]: sentences.embeddings[hoi]
        for hoi, (verb, label) in enumerate(vocabulary.interactions)
        if verb == throw
    }
    path = write_new_prompts({"throw": ("throwing", own)})
    code, _, err = command(train, "evaluate", student_path, "--data", dataset_root)
    assert code == 2 and "expected a student of the vocabulary toy, found smaller" in err
    results = evaluate_checkpoint(
        student_path, dataset_root, None, tmp_path / "scores", "cpu", 0, False, prompts=path
    )
    assert (results.vocabulary, results.training_split) == ("toy", "full+prompts")
    names = {vocabulary.interaction_name(hoi) for hoi in results.unseen}
    assert {name for name in names if name.startswith("throw ")} == {
        f"throw {name}" for name in own
    }


def write_smaller(tmp_path, checkpoint, model, smaller, kept, sentences):
    model.verb_head.set_texts(build_text_embeddings(smaller, sentences.embeddings[kept], "file"))
    texts = len(model.verb_head.texts)
    model.config = replace(model.config, num_verbs=smaller.num_verbs, num_texts=texts)
    folder = tmp_path / "smaller"
    folder.mkdir()
    save_checkpoint(
        folder / CHECKPOINT,
        replace(
            checkpoint,
            recipe=replace(checkpoint.recipe, model=model.config),
            vocabulary=smaller,
            split=load_split(smaller, "full"),
            weights=model.state_dict(),
        ),
    )
    return folder


@pytest.fixture
def object_run(make_text_run, embedding):
    """`object_run(verb_head)` gives a student with a text object head, whose queries all predict
    one embedding, that of a unicycle."""

    def make(verb_head="linear"):
        run = make_text_run(verb_head=verb_head, object_head="text")
        checkpoint = load_checkpoint(run / CHECKPOINT)
        for head in ("object_head", "verb_head") if verb_head == "text" else ("object_head",):
            checkpoint.weights[f"{head}.projection.weight"].zero_()
            checkpoint.weights[f"{head}.projection.bias"].copy_(torch.from_numpy(embedding))
        checkpoint.weights["object_head.no_pair.weight"].zero_()
        checkpoint.weights["object_head.no_pair.bias"].fill_(-9)
        save_checkpoint(run / CHECKPOINT, checkpoint)
        return run

    return make


@pytest.fixture
def unicycle(write_new_prompts, embedding):
    things = {"unicycle": embedding, "piano": -embedding}
    return write_new_prompts({"ride": ("riding", things), "push": ("pushing", things)})


@pytest.mark.parametrize("verb_head", ["linear", "text"])
def test_an_object_without_labels_is_named(object_run, unicycle, verb_head, write_image):
    run = object_run(verb_head)
    found = Detector.open(run, device="cpu", prompts=unicycle)(
        write_image("a.png"), threshold=0, top=500
    )
    assert set(found.actions) == {"ride unicycle", "push unicycle"} and found.unseen.all()
    plain, more = (load_student(run / CHECKPOINT, prompts=each) for each in (None, unicycle))
    old = plain.vocabulary.num_objects
    assert more.vocabulary.objects == (*plain.vocabulary.objects, "unicycle", "piano")
    assert len(set(more.vocabulary.category_ids)) == old + 2 == more.model.config.num_objects
    image = torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = plain.model([image]), more.model([image])
    logits = after["pred_object_logits"]
    torch.testing.assert_close(before["pred_object_logits"], logits[..., [*range(old), old + 2]])
    # The cosine with unicycles is 1, that with pianos -1.
    head = more.model.object_head
    difference = logits[..., old] - logits[..., old + 1]
    torch.testing.assert_close(
        difference, (2 * head.log_scale.exp()).expand_as(difference), rtol=1e-4, atol=1e-4
    )


def test_linear_heads_keep_their_classes(
    object_run, prompts, write_new_prompts, vocabulary, embedding
):
    run = object_run()
    with pytest.raises(InputError, match="verb head is linear, found swallow"):
        Detector.open(run, prompts=prompts)
    known = write_new_prompts({"ride": ("riding", {"piano": embedding})}, "known.h5")
    reversed_verbs = replace(vocabulary, verbs=vocabulary.verbs[::-1])
    with pytest.raises(InputError, match="verb head is linear, found fewer or another order"):
        load_student(run / CHECKPOINT, reversed_verbs, None, known)


def test_classes_of_prompts_are_those_of_the_student_in_other_capitals(
    object_run, write_new_prompts, embedding, vocabulary
):
    path = write_new_prompts({"Ride": ("riding", {"Box": embedding, "horse": embedding})})
    more = load_student(object_run("text") / CHECKPOINT, prompts=path).vocabulary
    assert (more.objects, more.verbs) == (vocabulary.objects, vocabulary.verbs)
    assert more.interaction_names[vocabulary.num_interactions :] == [("ride", "box")]


def test_objects_that_differ_in_case_only_keep_their_sentences(
    object_run, write_new_prompts, embedding, vocabulary
):
    """SWIG-HOI has the objects "Crown" and "crown"."""
    things = {"Unicycle": embedding, "unicycle": -embedding}
    path = write_new_prompts({"ride": ("riding", things)})
    value = vocabulary.to_dict()
    count, ride = len(value["objects"]), vocabulary.verbs.index("ride")
    value["objects"] += [{"name": "Unicycle", "id": 90}, {"name": "unicycle", "id": 91}]
    value["interactions"] += [[ride, count], [ride, count + 1]]
    wanted = vocabulary_from_dict({**value, "splits": {}, "rare": []}, "other")
    head = load_student(object_run() / CHECKPOINT, wanted, None, path).model.object_head
    rows = [head.labels.tolist().index(label) for label in (count, count + 1)]
    expected = torch.from_numpy(np.stack([embedding, -embedding]))
    torch.testing.assert_close(head.texts[rows], expected)


def test_objects_of_a_dataset_are_matched_by_name(object_run, unicycle, vocabulary):
    value = vocabulary.to_dict()
    last = len(value["objects"])
    value["objects"] = [*value["objects"][::-1], {"name": "Unicycle", "id": 90}]
    pairs = [[verb, last - 1 - label] for verb, label in value["interactions"]]
    ride, point = (vocabulary.verbs.index(name) for name in ("ride", "point"))
    value["interactions"] = [*pairs, [ride, last], [point, last]]
    wanted = vocabulary_from_dict({**value, "splits": {}, "rare": []}, "other")
    run = object_run()
    more = load_student(run / CHECKPOINT, wanted, None, unicycle)
    plain = load_student(run / CHECKPOINT)
    assert more.vocabulary is wanted and set(more.split.unseen) > {len(pairs), len(pairs) + 1}
    image = torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = plain.model([image]), more.model([image])
    mine, theirs = after["pred_object_logits"], before["pred_object_logits"]
    torch.testing.assert_close(mine[..., [*range(last)[::-1], last + 1]], theirs)
    assert (mine[0, :, :-1].argmax(-1) == last).all()
    # Pointing at a unicycle has no sentence: the verb's mean says nothing about the object.
    assert more.model.object_head.labels[len(pairs) :][:2].tolist() == [last, last + 1]
    unknown = replace(wanted, objects=(*wanted.objects[:-1], "lute"))
    with pytest.raises(InputError, match=r"sentences for all objects of .* none for lute"):
        load_student(run / CHECKPOINT, unknown, None, unicycle)


@pytest.mark.slow
def test_an_exported_student_names_the_object(object_run, unicycle):
    detector = Detector.open(object_run("text"), "cpu", prompts=unicycle)
    program, names = trace_detector(detector)
    assert "pred_object_embeddings" in names
    image = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(1))
    found = program.module()(image[None], torch.tensor([[96, 128]]))
    assert (found["labels"][0, :3] == detector.vocabulary.objects.index("unicycle")).all()


def test_the_exported_graph_contains_the_sentences(run, prompts):
    detector = Detector.open(run, "cpu", prompts=prompts)
    image = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
    with torch.no_grad():
        found = DetectorGraph(detector)(image[None], torch.tensor([[96, 128]]))
        expected = detector.predictor.model([(image - mean) / std])
    for name in ("pred_verb_logits", "pred_verb_embeddings"):
        torch.testing.assert_close(found[name], expected[name], atol=1e-3, rtol=1e-3)
    assert (found["verbs"][0, :3] == detector.vocabulary.verbs.index("juggle")).all()
