"""The experiments with few labels: shots, and pictures that nobody labelled."""

from __future__ import annotations

from benchmarks.study.experiment import Experiment, Variant
from benchmarks.study.pieces import Piece, cache, module, pictures_alone, student, world

LABELLED, MIX = 300, 0.5
# So many epochs give every student as many steps, 300 of 4 pictures, half of them labelled where
# there are others.
ALONE, BESIDE = 4, 2
FEW = world(LABELLED, f"world-{LABELLED}")
FEW_CACHE = cache(str(LABELLED), of=FEW)
LACKED = ("carry", "push", "kick", "throw")
# Of these, enough pictures show none of the lacked actions.
MANY = world(1200, "world-1200")
LACKING = module(
    f"lacking-{LABELLED}",
    "lacking",
    *("<world>", "--out", "<out>", "--verbs", ",".join(LACKED)),
    *("--count", f"{LABELLED}", "--seed", "<seed>"),
    needs=(("world", MANY),),
)
LACKING_CACHE = cache(f"lacking-{LABELLED}", of=LACKING)


def _with_pictures(count: int, *options: str, of: Piece, by: Piece, split: str = "ua") -> Piece:
    pictures = pictures_alone(str(count), world(count, f"world-more-{count}", seed="2<seed>"))
    answers = cache(f"more-{count}", of=pictures)
    return student(
        *("--mix", f"{MIX:g}", "--extra", "<pictures>:<answers>", *options),
        by=by,
        of=of,
        split=split,
        epochs=BESIDE,
        needs=(("pictures", pictures), ("answers", answers)),
    )


SHOTS = Experiment(
    "shots",
    "A few labels of every unseen class",
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
    f"Pictures without labels beside {LABELLED} with labels, equal numbers of steps",
    (
        Variant("labels alone", student("--no-distillation", by=FEW_CACHE, of=FEW, epochs=ALONE)),
        Variant("teacher asked about them", student(by=FEW_CACHE, of=FEW, epochs=ALONE)),
        Variant("2000 further pictures", _with_pictures(2000, by=FEW_CACHE, of=FEW)),
    ),
    "teacher asked about them",
    "The paper adds MS-COCO's pictures; its numbers are not among those that this project has.",
)


def _lacking(*options: str) -> Piece:
    return student(*options, by=LACKING_CACHE, of=LACKING, split="new-actions", epochs=ALONE)


def _lacking_beside(*options: str) -> Piece:
    return _with_pictures(2000, *options, by=LACKING_CACHE, of=LACKING, split="new-actions")


NEW_ACTIONS = Experiment(
    "new-actions",
    f"Pictures without labels beside {LABELLED} with labels and without four of the actions",
    (
        Variant("labels alone", _lacking("--no-distillation")),
        Variant("teacher asked about them", _lacking()),
        Variant("2000 further pictures", _lacking_beside()),
        Variant("2000 further pictures, teacher silent", _lacking_beside("--no-distillation")),
    ),
    "labels alone",
    "The paper adds MS-COCO's pictures; its numbers are not among those that this project has.",
)
