"""The experiments with few labels: shots, and pictures that nobody labelled."""

from __future__ import annotations

from benchmarks.study.experiment import Experiment, Variant
from benchmarks.study.pieces import Piece, cache, pictures_alone, small_world, student

LABELLED = 300
# So many epochs give every student about the steps of a plain one: 280 of 32 pictures, of which
# half are labelled where there are others.
ALONE, BESIDE = ("--epochs", "31"), ("--epochs", "16", "--mix", "0.5")
FEW = small_world(str(LABELLED), LABELLED)
FEW_CACHE = cache(str(LABELLED), of=FEW)


def _with_pictures(count: int) -> Piece:
    pictures = pictures_alone(str(count), small_world(f"more-{count}", count, seed="2<seed>"))
    answers = cache(f"more-{count}", of=pictures)
    return student(
        *BESIDE,
        *("--extra", "<pictures>:<answers>"),
        by=FEW_CACHE,
        of=FEW,
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
        Variant("labels alone", student("--no-distillation", *ALONE, by=FEW_CACHE, of=FEW)),
        Variant("teacher asked about them", student(*ALONE, by=FEW_CACHE, of=FEW)),
        Variant("500 further pictures", _with_pictures(500)),
        Variant("2000 further pictures", _with_pictures(2000)),
    ),
    "teacher asked about them",
    "The paper adds MS-COCO's pictures; its numbers are not among those that this project has.",
)
