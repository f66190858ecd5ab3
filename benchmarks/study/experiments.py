"""What the study compares, with what, and what the paper has to say about it."""

from __future__ import annotations

from benchmarks.study.experiment import Experiment, Variant
from benchmarks.study.images import MORE_IMAGES, NEW_ACTIONS, SHOTS
from benchmarks.study.pieces import (
    CACHE,
    PLAIN,
    TEMPLATES,
    Piece,
    cache,
    rescored,
    student,
    teacher,
    teacher_score,
)
from benchmarks.study.reading import HEAD, UNHEARD

NO_NUMBERS = "Its own comparison is not among the numbers that this project has."


def _with(option: str, values: tuple[float, ...], plain: float) -> tuple[Variant, ...]:
    """A row for every value of an option; the toy preset is the plain one."""
    return tuple(
        Variant(f"{value:g}", PLAIN if value == plain else student(option, f"{value:g}"), x=value)
        for value in values
    )


def _on_and_off(title: str, split: str, paper: str | None) -> tuple[Variant, Variant]:
    off = f"{title}, without"
    return (
        Variant(f"{title}, distilled", student(split=split), against=off, paper=paper),
        Variant(off, student("--no-distillation", split=split)),
    )


DISTILLATION = Experiment(
    "distillation",
    "Distillation on and off, for every kind of unseen class",
    (
        *_on_and_off("UA", "ua", "ua"),
        *_on_and_off("UC", "uc", "uc0"),
        *_on_and_off("UC, second draw", "uc-1", None),
        *_on_and_off("rare first", "rf-uc", "rf-uc-138"),
        *_on_and_off("non-rare first", "nf-uc", "nf-uc"),
        *_on_and_off("UO", "uo", None),
    ),
    None,
    "On HICO-DET with ResNet-50 the paper reports the numbers in the last column (UC: mean of five"
    " draws; rare first: with all 138 rare interactions). The same detector without distillation"
    " has about 8 unseen in UA.",
)
TOPK = Experiment(
    "topk",
    "Number of candidates per image (top-k)",
    _with("--topk", (1, 3, 5, 10), 3),
    "3",
    f"The paper trains with 3. {NO_NUMBERS}",
    "candidates per image (top-k)",
)
GATE = Experiment(
    "interactive-threshold",
    "Threshold of the interactive probability",
    _with("--interactive-threshold", (0, 0.1, 0.3, 0.5, 0.7), 0),
    "0",
    f"The paper trains with 0.5. {NO_NUMBERS}",
    "threshold of the interactive probability",
)
WHOLE_IMAGE = cache("image", "--level", "image")
LEVEL = Experiment(
    "level",
    "Input of the teacher: union region or whole image",
    (
        Variant("region", PLAIN, teacher=teacher_score(CACHE)),
        Variant("whole image", student(by=WHOLE_IMAGE), teacher=teacher_score(WHOLE_IMAGE)),
    ),
    "region",
    f"The paper's teacher sees the union region. {NO_NUMBERS}",
)
CANDIDATES = Experiment(
    "candidates",
    "Source of unlabelled pairs",
    (
        Variant("detector", PLAIN),
        Variant("annotated, labels removed", student("--candidates", "annotated")),
    ),
    "detector",
    "The paper pairs the annotated boxes of unseen pairs, labels removed: it is told where they"
    " are.",
)


def _soft(weight: float, normalisation: str, *options: str) -> Piece:
    return student("--soft-weight", f"{weight:g}", "--soft-normalisation", normalisation, *options)


SOFT = Experiment(
    "soft-loss",
    "Normalisation and weight of the distillation loss",
    (
        Variant("supervised, 3", PLAIN),
        Variant("supervised, 1", _soft(1, "supervised")),
        Variant("supervised, 10", _soft(10, "supervised")),
        Variant("entries, 700", _soft(700, "entries")),
        Variant("entries, 700, labels by BCE", _soft(700, "entries", "--verb-loss", "bce_bce")),
    ),
    "supervised, 3",
    "The paper divides by all queries and verbs (entries), with weight 700, and gives labels a"
    " focal loss. That weight is for 64 queries and 117 verbs; the toy dataset has 20 and 11.",
)
VDETACH = Experiment(
    "vdetach",
    "Verb gradients detached from localisation, or not",
    (Variant("detached", PLAIN), Variant("not detached", student("--no-vdetach"))),
    "detached",
    f"The paper keeps them out. {NO_NUMBERS}",
)


def _short(steps: int) -> Piece:
    name = f"{steps}-steps"
    return cache(name, by=teacher(name, "--teacher-steps", str(steps)))


def _taught_by(label: str, by: Piece) -> Variant:
    return Variant(label, student(by=by), teacher=teacher_score(by))


POOR = 100
TEACHER = Experiment(
    "teacher",
    "Accuracy of the teacher and mAP of its student",
    (
        *(_taught_by(f"{steps} steps", _short(steps)) for steps in (25, POOR, 200)),
        Variant("500 steps", PLAIN, teacher=teacher_score(CACHE)),
    ),
    "500 steps",
    f"The paper's teacher is CLIP RN50x16. {NO_NUMBERS}",
    "teacher's accuracy on annotated pairs, %",
)


SPEAKS = tuple(word for template in TEMPLATES for word in ("--template", template))


def _asked(title: str, name: str, *taught: str) -> tuple[Variant, Variant]:
    """A teacher that learned three sentences, asked with one of them and with all."""
    one = cache(f"{name}sentences", by=teacher("sentences", *taught, *SPEAKS))
    three = rescored(f"{name}three-sentences", one, *SPEAKS)
    other = f"{title}, one prompt"
    return (
        _taught_by(other, one),
        Variant(f"{title}, three prompts", student(by=three), other, teacher_score(three)),
    )


SENTENCES = Experiment(
    "sentences",
    "One prompt or the mean of three, for teachers trained on all three",
    (
        *_asked("good teacher (500 steps)", ""),
        *_asked(f"poor teacher ({POOR} steps)", f"{POOR}-steps-", "--teacher-steps", str(POOR)),
    ),
    None,
    f"The paper asks with one. {NO_NUMBERS}",
)

EXPERIMENTS = (
    DISTILLATION,
    TOPK,
    GATE,
    LEVEL,
    CANDIDATES,
    SOFT,
    VDETACH,
    TEACHER,
    SHOTS,
    MORE_IMAGES,
    NEW_ACTIONS,
    SENTENCES,
    HEAD,
    UNHEARD,
)
