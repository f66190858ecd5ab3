"""The experiments with few labels: shots, and pictures that nobody labelled."""

from __future__ import annotations

from benchmarks.study.experiment import Experiment, Variant
from benchmarks.study.pieces import Piece, cache, pictures_alone, student, world

LABELLED, MIX = 300, 0.5
# So many epochs give every student about the steps of the others, 320 of 4 pictures, half of them
# labelled where there are others.
ALONE, BESIDE = 4, 2
FEW = world(LABELLED, f"world-{LABELLED}")
FEW_CACHE = cache(str(LABELLED), of=FEW)


def _alone(*options: str) -> Piece:
    return student(*options, by=FEW_CACHE, of=FEW, epochs=ALONE)


def _with_pictures(count: int) -> Piece:
    pictures = pictures_alone(str(count), world(count, f"world-more-{count}", seed="2<seed>"))
    answers = cache(f"more-{count}", of=pictures)
    return student(
        *("--mix", f"{MIX:g}", "--extra", "<pictures>:<answers>"),
        by=FEW_CACHE,
        of=FEW,
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
        Variant("labels alone", _alone("--no-distillation")),
        Variant("teacher asked about them", _alone()),
        Variant("2000 further pictures", _with_pictures(2000)),
    ),
    "teacher asked about them",
    "The paper adds MS-COCO's pictures; its numbers are not among those that this project has.",
)
