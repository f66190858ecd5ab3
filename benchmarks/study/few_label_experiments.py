"""The experiments with few labels: few-shot labels, and additional unlabelled images."""

from __future__ import annotations

from benchmarks.study.artifacts import (
    Artifact,
    cache,
    student,
    study_module,
    toy,
    unlabelled_images,
)
from benchmarks.study.experiment import Experiment, Variant

NUM_LABELLED, EXTRA_RATIO = 300, 0.5
# With these epochs every student has 300 steps of 4 images, half of them unlabelled if there are
# additional images.
EPOCHS, EPOCHS_WITH_EXTRA = 4, 2
FEW = toy(NUM_LABELLED, f"toy-{NUM_LABELLED}")
FEW_CACHE = cache(str(NUM_LABELLED), dataset=FEW)
NEW_VERBS = ("carry", "push", "kick", "throw")
# Enough of these images show none of the new verbs.
LARGE = toy(1200, "toy-1200")
REDUCED = study_module(
    f"without-new-verbs-{NUM_LABELLED}",
    "images_without_verbs",
    *("<toy>", "--out", "<out>", "--verbs", ",".join(NEW_VERBS)),
    *("--count", f"{NUM_LABELLED}", "--seed", "<seed>"),
    inputs=(("toy", LARGE),),
)
REDUCED_CACHE = cache(f"without-new-verbs-{NUM_LABELLED}", dataset=REDUCED)


def _with_extra_images(
    count: int, *options: str, labelled: Artifact, labelled_cache: Artifact, split: str = "ua"
) -> Artifact:
    extra = unlabelled_images(str(count), toy(count, f"toy-extra-{count}", seed="2<seed>"))
    extra_cache = cache(f"extra-{count}", dataset=extra)
    return student(
        *("--extra-ratio", f"{EXTRA_RATIO:g}", "--extra-data", "<extra>:<extra_cache>", *options),
        cache=labelled_cache,
        dataset=labelled,
        split=split,
        epochs=EPOCHS_WITH_EXTRA,
        inputs=(("extra", extra), ("extra_cache", extra_cache)),
    )


SHOTS = Experiment(
    "shots",
    "Few labels for every unseen interaction",
    tuple(
        Variant(f"{shots}", student(*(("--shots", f"{shots}") if shots else ())), x=float(shots))
        for shots in (0, 1, 2, 5, 10)
    ),
    "0",
    "Not in the paper, which uses no labels of unseen interactions.",
    "labelled pairs of every unseen interaction",
)
MORE_IMAGES = Experiment(
    "more-images",
    f"Unlabelled images beside {NUM_LABELLED} labelled ones, equal numbers of steps",
    (
        Variant(
            "labels alone",
            student("--no-distillation", cache=FEW_CACHE, dataset=FEW, epochs=EPOCHS),
        ),
        Variant("labels and teacher", student(cache=FEW_CACHE, dataset=FEW, epochs=EPOCHS)),
        Variant(
            "2000 further images", _with_extra_images(2000, labelled=FEW, labelled_cache=FEW_CACHE)
        ),
    ),
    "labels and teacher",
    "The paper adds images of MS-COCO; its numbers are not available here.",
)


def _new_verbs(*options: str) -> Artifact:
    return student(
        *options, cache=REDUCED_CACHE, dataset=REDUCED, split="new-actions", epochs=EPOCHS
    )


def _new_verbs_with_extra_images(*options: str) -> Artifact:
    return _with_extra_images(
        2000, *options, labelled=REDUCED, labelled_cache=REDUCED_CACHE, split="new-actions"
    )


NEW_ACTIONS = Experiment(
    "new-actions",
    f"Unlabelled images beside {NUM_LABELLED} labelled ones and without four of the actions",
    (
        Variant("labels alone", _new_verbs("--no-distillation")),
        Variant("labels and teacher", _new_verbs()),
        Variant("2000 further images", _new_verbs_with_extra_images()),
        Variant(
            "2000 further images, no distillation",
            _new_verbs_with_extra_images("--no-distillation"),
        ),
    ),
    "labels alone",
    "The paper adds images of MS-COCO; its numbers are not available here.",
)
