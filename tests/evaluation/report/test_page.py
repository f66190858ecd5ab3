from dataclasses import replace

from evaluation.analysis.comparison import compare
from evaluation.report.page import build_headline


def scored(distilled, unseen, seen=0.5, **fields):
    return replace(
        distilled, metrics={**distilled.metrics, "unseen": unseen, "seen": seen}, **fields
    )


def test_with_control(toy, distilled):
    first, more = build_headline(
        compare([distilled, scored(distilled, 0.021, distillation=False)], toy)
    )
    assert first == (
        "70.1 mAP on carry, kick and push without any label of them; 2.1 without distillation."
    )
    assert more == "On seen interactions it has 55.0, without distillation 50.0."


def test_with_everything(toy, distilled):
    control = scored(distilled, 0.021, distillation=False)
    all_labels = scored(distilled, 0.81, distillation=False, training_split="full")
    teacher = scored(distilled, 0.475, kind="teacher", distillation=None)
    _, more = build_headline(compare([teacher, all_labels, control, distilled], toy))
    assert "the same student reaches 81.0: distillation closes 86 % of the gap." in more
    assert "It is better than its teacher, which has 47.5." in more


def test_states_that_distillation_did_not_help(toy, distilled):
    control = scored(distilled, 0.75, distillation=False)
    first, _ = build_headline(compare([distilled, control], toy))
    assert first.endswith("without distillation: distillation did not help here.")


def test_states_that_the_control_is_missing(toy, distilled):
    first, more = build_headline(compare([distilled], toy))
    assert first == "70.1 mAP on carry, kick and push without any label of them."
    assert "a run without distillation" in more


def test_without_a_distilled_run(toy, distilled):
    first, _ = build_headline(compare([scored(distilled, 0.021, distillation=False)], toy))
    assert first == "Unseen mAP: No distillation 2.1."


def test_full_supervision(toy, distilled):
    full = replace(distilled, split="full", unseen=(), training_split="full", distillation=False)
    assert build_headline(compare([full], toy))[0] == "Full mAP: Student 40.0."
