"""The experiments with few labels: shots, and pictures that nobody labelled."""

from __future__ import annotations

from benchmarks.study.experiment import Experiment, Variant
from benchmarks.study.pieces import Piece, cache, module, pictures_alone, student, toy

LABELLED, MIX = 300, 0.5
# So many epochs give every student as many steps, 300 of 4 pictures, half of them labelled where
# there are others.
ALONE, BESIDE = 4, 2
FEW = toy(LABELLED, f"toy-{LABELLED}")
FEW_CACHE = cache(str(LABELLED), of=FEW)
LACKED = ("carry", "push", "kick", "throw")
# Of these, enough pictures show none of the lacked actions.
MANY = toy(1200, "toy-1200")
LACKING = module(
    f"lacking-{LABELLED}",
    "lacking",
    *("<toy>", "--out", "<out>", "--verbs", ",".join(LACKED)),
    *("--count", f"{LABELLED}", "--seed", "<seed>"),
    needs=(("toy", MANY),),
)
LACKING_CACHE = cache(f"lacking-{LABELLED}", of=LACKING)


def _with_pictures(count: int, *options: str, of: Piece, by: Piece, split: str = "ua") -> Piece:
    pictures = pictures_alone(str(count), toy(count, f"toy-more-{count}", seed="2<seed>"))
    answers = cache(f"more-{count}", of=pictures)
    return student(
        *("--extra-ratio", f"{MIX:g}", "--extra-data", "<pictures>:<answers>", *options),
        by=by,
        of=of,
        split=split,
        epochs=BESIDE,
        needs=(("pictures", pictures), ("answers", answers)),
    )


SHOTS = Experiment(
    "shots",
    "Few labels for every unseen interaction",
    tuple(
        Variant(f"{shots}", student(*(("--shots", f"{shots}") if shots else ())), x=float(shots))
        for shots in (0, 1, 2, 5, 10)
    ),
    "0",
    "Not in the paper, which is about no labels at all.",
    "labelled pairs of every unseen interaction",
)
MORE_IMAGES = Experiment(
    "more-images",
    f"Unlabelled images beside {LABELLED} labelled ones, equal numbers of steps",
    (
        Variant("labels alone", student("--no-distillation", by=FEW_CACHE, of=FEW, epochs=ALONE)),
        Variant("labels and teacher", student(by=FEW_CACHE, of=FEW, epochs=ALONE)),
        Variant("2000 further images", _with_pictures(2000, by=FEW_CACHE, of=FEW)),
    ),
    "labels and teacher",
    "The paper adds MS-COCO's pictures; its numbers are not among those that this project has.",
)


def _lacking(*options: str) -> Piece:
    return student(*options, by=LACKING_CACHE, of=LACKING, split="new-actions", epochs=ALONE)


def _lacking_beside(*options: str) -> Piece:
    return _with_pictures(2000, *options, by=LACKING_CACHE, of=LACKING, split="new-actions")


NEW_ACTIONS = Experiment(
    "new-actions",
    f"Unlabelled images beside {LABELLED} labelled ones and without four of the actions",
    (
        Variant("labels alone", _lacking("--no-distillation")),
        Variant("labels and teacher", _lacking()),
        Variant("2000 further images", _lacking_beside()),
        Variant("2000 further images, no distillation", _lacking_beside("--no-distillation")),
    ),
    "labels alone",
    "The paper adds MS-COCO's pictures; its numbers are not among those that this project has.",
)
