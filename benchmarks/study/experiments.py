"""The experiments of the study, with the choices and results of the paper."""

from __future__ import annotations

from benchmarks.study.artifacts import (
    CACHE,
    PLAIN,
    TEMPLATES,
    Artifact,
    cache,
    rescored,
    student,
    teacher,
    teacher_score,
)
from benchmarks.study.experiment import Experiment, Variant
from benchmarks.study.few_label_experiments import MORE_IMAGES, NEW_ACTIONS, SHOTS
from benchmarks.study.text_head_experiments import HEAD, NEW_VERBS_BY_PROMPT

NO_NUMBERS = "Its numbers for this comparison are not available here."


def _with(option: str, values: tuple[float, ...], plain: float) -> tuple[Variant, ...]:
    """A row for every value of an option; `plain` is the value of the toy preset."""
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
THRESHOLD = Experiment(
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
        Variant("whole image", student(cache=WHOLE_IMAGE), teacher=teacher_score(WHOLE_IMAGE)),
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
    "The paper uses the annotated boxes of unseen pairs with their labels removed, so their"
    " locations are known.",
)


def _soft(weight: float, normalisation: str, *options: str) -> Artifact:
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
    f"The paper detaches them. {NO_NUMBERS}",
)


def _short(steps: int) -> Artifact:
    name = f"{steps}-steps"
    return cache(name, teacher=teacher(name, "--teacher-steps", str(steps)))


def _with_teacher(label: str, source: Artifact) -> Variant:
    return Variant(label, student(cache=source), teacher=teacher_score(source))


POOR = 100
TEACHER = Experiment(
    "teacher",
    "Accuracy of the teacher and mAP of its student",
    (
        *(_with_teacher(f"{steps} steps", _short(steps)) for steps in (25, POOR, 200)),
        Variant("500 steps", PLAIN, teacher=teacher_score(CACHE)),
    ),
    "500 steps",
    f"The paper's teacher is CLIP RN50x16. {NO_NUMBERS}",
    "teacher's accuracy on annotated pairs, %",
)


TEMPLATE_OPTIONS = tuple(word for template in TEMPLATES for word in ("--template", template))


def _one_and_three_prompts(title: str, name: str, *options: str) -> tuple[Variant, Variant]:
    """A teacher trained on three prompt templates, used with one of them and with all."""
    one = cache(f"{name}sentences", teacher=teacher("sentences", *options, *TEMPLATE_OPTIONS))
    three = rescored(f"{name}three-sentences", one, *TEMPLATE_OPTIONS)
    other = f"{title}, one prompt"
    return (
        _with_teacher(other, one),
        Variant(f"{title}, three prompts", student(cache=three), other, teacher_score(three)),
    )


SENTENCES = Experiment(
    "sentences",
    "One prompt or the mean of three, for teachers trained on all three",
    (
        *_one_and_three_prompts("good teacher (500 steps)", ""),
        *_one_and_three_prompts(
            f"poor teacher ({POOR} steps)", f"{POOR}-steps-", "--teacher-steps", str(POOR)
        ),
    ),
    None,
    f"The paper uses one prompt. {NO_NUMBERS}",
)

EXPERIMENTS = (
    DISTILLATION,
    TOPK,
    THRESHOLD,
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
    NEW_VERBS_BY_PROMPT,
)
