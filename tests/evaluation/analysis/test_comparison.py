from dataclasses import replace

import pytest

from evaluation.analysis.comparison import compare
from evaluation.results import SettingScores
from pipeline.utils.errors import InputError


def test_roles_in_any_order(toy, make):
    results = [
        make(0.3, kind="teacher", training_split=None, distillation=None),
        make(0.8, distillation=False, training_split="full"),
        make(0.05, distillation=False),
        make(0.6, kind="predictions", name="another project", distillation=None),
        make(0.7),
    ]
    expected = ["distilled", "control", "all_labels", "teacher", "predictions"]
    for order in (results, results[::-1]):
        found = compare(order, toy)
        assert [entry.role for entry in found.entries] == expected
        assert [entry.metric("unseen") for entry in found.entries] == [0.7, 0.05, 0.8, 0.3, 0.6]
        assert found.entries[-1].title == "another project"
        assert found.gap_closed() == pytest.approx(0.65 / 0.75)


def test_a_checkpoint_of_unknown_training_is_no_control(toy, make):
    fields = {"name": "eoid_ua", "training_split": None, "distillation": None}
    found = compare([make(0.2, **fields, nms={"threshold": 0.7}), make(0.7)], toy)
    assert [entry.role for entry in found.entries] == ["distilled", "predictions"]
    last = found.entries[-1]
    assert (last.title, last.note) == ("eoid_ua", "from a checkpoint, after pairwise NMS")


def test_a_probe_is_no_student(toy, make):
    probes = [make(0.6, kind="probe"), make(0.2, kind="probe", distillation=False)]
    found = compare([make(0.7), *probes, make(0.9, 0.9, split="full", kind="probe")], toy).entries
    assert [entry.role for entry in found] == ["distilled", *["predictions"] * 3]
    assert [entry.metric("unseen") for entry in found[1:]] == pytest.approx([0.6, 0.2, 0.9])
    head = "verb head on the cache's embeddings:"
    ends = ("seen labels and the teacher's predictions", "seen labels only", "all labels")
    assert [entry.note for entry in found[1:]] == [f"{head} {end}" for end in ends]


def test_only_runs_with_equal_settings_are_averaged(toy, make):
    runs = [make(0.7, recipe="a"), make(0.6, recipe="b"), make(0.5, recipe="a", seed=1)]
    found = compare(runs, toy)
    assert [len(entry.results) for entry in found.entries] == [2, 1]
    assert "with other settings" in found.entries[1].note


def test_limited_results_are_not_averaged_with_whole_ones(toy, make):
    """The whole ones give the page its dataset and number of images."""
    trial = make(0.1, name="trial", limit=8, training_limit=8, num_images=8)
    teacher = make(0.2, kind="teacher", name="teacher", limit=8)
    found = compare([trial, teacher, make(0.7), make(0.5, seed=1)], toy)
    assert [entry.role for entry in found.entries] == ["distilled", *["predictions"] * 2]
    assert found.entries[0].metric("unseen") == pytest.approx(0.6) and not found.first.limit
    note = "trained with --limit 8 and evaluated with --limit 8"
    assert [entry.note for entry in found.entries[1:]] == [note, "evaluated with --limit 8"]


def test_files_take_the_styles_of_unused_roles(toy, make):
    files = [make(0.2, kind="predictions", name=name, distillation=None) for name in "abc"]
    found = compare([make(0.7), *files], toy).entries
    assert [entry.style for entry in found] == ["distilled", "predictions", "control", "all_labels"]


def test_titles_of_single_runs(toy, make):
    (found,) = compare([make(0.6, seed=2), make(0.8, seed=1), make(0.8)], toy).entries
    assert {found.run_title(result) for result in found.results} == {"seed 1", "seed 2", "run"}
    (found,) = compare([make(0.6, seed=2), make(0.8, seed=2)], toy).entries
    assert [found.run_title(result) for result in found.results] == ["seed 2 (1)", "seed 2 (2)"]


def test_the_known_object_setting_is_grouped_too(toy, make):
    full = make(0.9, 0.5, split="full", distillation=False)
    unseen = {toy.interaction_name(index) for index in make(0.1).unseen}
    values = {name: 0.8 if name in unseen else 0.4 for name in full.per_class}
    further = SettingScores({**full.metrics, "full": 0.6}, values, {}, {}, {})
    found = compare([replace(full, known_object=further), make(0.7)], toy)
    all_labels = found.find("all_labels")
    assert all_labels.metric("unseen", known_object=True) == pytest.approx(0.8)
    assert all_labels.metric("seen", known_object=True) == pytest.approx(0.4)
    assert all_labels.metric("harmonic_mean", known_object=True) == pytest.approx(2 / (1.25 + 2.5))
    assert all_labels.metric("full", known_object=True) == 0.6
    assert found.find("distilled").metric("full", known_object=True) is None


def test_results_of_several_seeds_are_averaged(toy, make):
    found = compare([make(0.6, seed=2), make(0.8, seed=1)], toy)
    (distilled,) = found.entries
    assert distilled.metric("unseen") == pytest.approx(0.7)
    assert [result.seed for result in distilled.results] == [1, 2]
    assert distilled.mean_ap(["kick ball"]) == pytest.approx(0.7)


@pytest.mark.parametrize("given", [(0.7, None), (0.7, 0.9)])
def test_no_share_without_a_gap(toy, make, given):
    distilled, all_labels = given
    results = [make(distilled), make(0.9, distillation=False)]
    if all_labels is not None:
        results.append(make(all_labels, distillation=False, training_split="full"))
    assert compare(results, toy).gap_closed() is None


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"dataset": "other"}, "dataset"),
        ({"vocabulary": "hico-det"}, "vocabulary"),
        ({"setting": "known_object"}, "setting"),
        ({"split": "uc"}, "split"),
    ],
)
def test_results_that_do_not_belong_together(toy, make, fields, what):
    with pytest.raises(InputError, match=f"expected one {what}, found "):
        compare([make(0.7), make(0.1, **fields)], toy)


def test_entries_with_more_labels_are_not_merged(toy, make):
    source = {"name": "pictures", "cache": "0", "images": 5, "labelled": 0, "protocol": "detector"}
    found = compare(
        [
            make(0.5, seed=0),
            make(0.7, seed=1),
            make(0.8, name="five", shots=5),
            make(0.9, name="more", sources=(source,)),
            make(0.95, name="both", shots=1, sources=(source,)),
        ],
        toy,
    )
    assert [(entry.title, entry.note) for entry in found.entries[1:]] == [
        ("five", "with 5 labels of every unseen interaction"),
        ("more", "with images of pictures"),
        ("both", "with a label of every unseen interaction and images of pictures"),
    ]
    assert found.entries[0].metric("unseen") == pytest.approx(0.6)
