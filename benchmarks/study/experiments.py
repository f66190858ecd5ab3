"""The experiments of the study, with the choices and results of the paper."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.study.artifacts import (
    BACKBONE,
    BATCH,
    CACHE,
    PLAIN,
    TOY,
    Artifact,
    cache,
    derived_dataset,
    rescored,
    student,
    teacher,
    teacher_score,
    toy,
)
from benchmarks.study.other_prompts import prompt_to_add
from pipeline.utils.files import sha256_of_json
from pipeline.vocabulary import load_vocabulary


@dataclass(frozen=True)
class Variant:
    """One row of a table.

    Attributes:
        label: name of the row.
        run: run or evaluation of the student.
        against: label of the row to compare with; None for no comparison.
        teacher: scores of the teacher, if the table shows its accuracy; else None.
        x: position on the horizontal axis of a curve; None for the teacher's accuracy.
        paper: split of the published results to show in the row; None for none.
    """

    label: str
    run: Artifact
    against: str | None = None
    teacher: Artifact | None = None
    x: float | None = None
    paper: str | None = None

    @property
    def artifacts(self) -> list[Artifact]:
        """Artifacts that the row's numbers are read from."""
        return [self.run, *([self.teacher] if self.teacher else [])]

    @property
    def digest(self) -> str:
        """SHA-256 of all commands behind the row's numbers."""
        return sha256_of_json([artifact.digest for artifact in self.artifacts])


@dataclass(frozen=True)
class Experiment:
    """One table and one figure.

    Attributes:
        name: short name, for files and `--only`.
        title: title of table and figure.
        variants: the rows.
        paper: note on the paper's choice and results.
        axis: label of the horizontal axis for a curve; None for a chart of rows.
        seeds: the only seeds that are run, for long experiments; None for those of the study.
        setting: how models and trainings differ from those of the page's introduction.
    """

    name: str
    title: str
    variants: tuple[Variant, ...]
    paper: str
    axis: str | None = None
    seeds: tuple[int, ...] | None = None
    setting: str = ""


NO_NUMBERS = "Its numbers for this comparison are not available here."
COCO_NUMBERS = "The paper adds images of MS-COCO; its numbers are not available here."
VOCABULARY = load_vocabulary("toy")


def _values(option: str, values: tuple[float, ...], plain: float) -> tuple[Variant, ...]:
    """A row for every value of an option, compared with the value of the toy preset, `plain`."""
    return tuple(
        Variant(
            f"{value:g}",
            PLAIN if value == plain else student(f"{option} {value:g}"),
            None if value == plain else f"{plain:g}",
            x=float(value),
        )
        for value in values
    )


def _on_and_off(title: str, split: str, paper: str | None = None) -> tuple[Variant, Variant]:
    off = f"{title}, without"
    return (
        Variant(f"{title}, distilled", student(split=split), off, paper=paper),
        Variant(off, student("--no-distillation", split=split)),
    )


def _with_teacher(label: str, source: Artifact, against: str | None = None) -> Variant:
    return Variant(label, student(cache=source), against, teacher_score(source))


def _soft(weight: float, normalisation: str, options: str = "") -> Artifact:
    return student(f"--soft-weight {weight:g} --soft-normalisation {normalisation} {options}")


def _short(steps: int) -> Artifact:
    """A cache of a teacher with fewer training steps than the demo's 500."""
    name = f"{steps}-steps"
    return cache(name, teacher=teacher(name, f"--teacher-steps {steps}"))


POOR = 100
TEMPLATES = " ".join(
    f"--template '{template}'"
    for template in (
        "a picture of person {ing} {object}",
        "person {ing} {object}",
        "a person {ing} a {object}",
    )
)


def _one_and_three_prompts(title: str, name: str, options: str = "") -> tuple[Variant, Variant]:
    """A teacher trained on three prompt templates, used with one of them and with all."""
    one = cache(f"{name}sentences", teacher=teacher("sentences", f"{options} {TEMPLATES}"))
    three = rescored(f"{name}three-sentences", one, TEMPLATES)
    other = f"{title}, one prompt"
    return _with_teacher(other, one), _with_teacher(f"{title}, three prompts", three, other)


# With these epochs every student has 300 steps of 4 images, half of them unlabelled if there are
# additional images.
NUM_LABELLED, FEW_EPOCHS, EPOCHS_WITH_EXTRA = 300, 4, 2
FEW = toy(NUM_LABELLED, f"toy-{NUM_LABELLED}")
FEW_CACHE = cache(str(NUM_LABELLED), dataset=FEW)
# Enough of the 1,200 images show none of the new verbs.
REDUCED = derived_dataset(
    f"without-new-verbs-{NUM_LABELLED}",
    f"images-without carry,push,kick,throw --count {NUM_LABELLED} --seed <seed>",
    toy(1200, "toy-1200"),
)
REDUCED_CACHE = cache(f"without-new-verbs-{NUM_LABELLED}", dataset=REDUCED)
EXTRA = derived_dataset(
    "unlabelled-2000", "unlabelled", toy(2000, "toy-extra-2000", seed="2<seed>")
)
EXTRA_CACHE = cache("extra-2000", dataset=EXTRA)


def _few(options: str = "") -> Artifact:
    return student(options, FEW_CACHE, dataset=FEW, epochs=FEW_EPOCHS)


def _new_verbs(options: str = "") -> Artifact:
    return student(options, REDUCED_CACHE, "new-actions", REDUCED, FEW_EPOCHS)


def _extra(dataset: Artifact, cache: Artifact, split: str, options: str = "") -> Artifact:
    return student(
        f"--extra-ratio 0.5 --extra-data <extra>:<extra_cache> {options}",
        cache,
        split,
        dataset,
        EPOCHS_WITH_EXTRA,
        extra=EXTRA,
        extra_cache=EXTRA_CACHE,
    )


# The text head needs longer training; determined with another verb (push, seed 0).
TEXT_HEAD, TEXT_EPOCHS = "--verb-head text", 5


def _evaluated(name: str, run: Artifact, prompt: Artifact) -> Artifact:
    """Scores of a student that is given further classes by a prompts file."""
    return Artifact(
        name,
        "eoid-train evaluate <student> --data <toy> --out <out> --prompts <prompt>/prompts.h5"
        " --overwrite",
        {"student": run, "toy": TOY, "prompt": prompt},
    )


def _new_verb(verb: str) -> tuple[Variant, Variant]:
    """Scores of a verb that is absent in training, from its own prompt and from other prompts."""
    dataset = derived_dataset(f"without-{verb}", f"without-verb {verb}", TOY)
    source = cache(f"without-{verb}", dataset=dataset)
    run = student(TEXT_HEAD, source, "full", dataset, TEXT_EPOCHS)
    prompt = Artifact(
        f"sentence-{verb}",
        f"eoid-cache prompts <cache> --add '{prompt_to_add(VOCABULARY, verb, verb)}'"
        " --out <out>/prompts.h5 --overwrite",
        {"cache": source},
    )
    own = _evaluated(f"own-{verb}", run, prompt)
    others = Artifact(
        f"others-{verb}",
        "python -m benchmarks.study.other_prompts <student> --cache <cache> --data <toy>"
        f" --out <out> --verb {verb} --seed <seed>",
        {"student": run, "cache": source, "toy": TOY},
    )
    name = VOCABULARY.verb_ings[VOCABULARY.verbs.index(verb)]
    control = f"{name}: others' sentences"
    return Variant(f"{name}: its own sentence", own, control), Variant(control, others)


# The two objects of split UO, for students whose vocabulary, labels and detector lack them.
NEW_OBJECTS = "bike,umbrella"
OBJECT_HEAD = "--object-head text"
WITHOUT_OBJECTS = derived_dataset("without-objects", f"without-objects {NEW_OBJECTS}", TOY)
WITHOUT_OBJECTS_CACHE = cache("without-objects", dataset=WITHOUT_OBJECTS)
OBJECT_PROMPTS = Artifact(
    "sentences-objects",
    "eoid-cache prompts <cache> --vocabulary toy --new-objects --out <out>/prompts.h5 --overwrite",
    {"cache": WITHOUT_OBJECTS_CACHE},
)


NEW_OBJECTS_STUDENT = student(
    OBJECT_HEAD, WITHOUT_OBJECTS_CACHE, "full", WITHOUT_OBJECTS, TEXT_EPOCHS
)


# The published settings of queries, matching and distillation, with the toy preset's backbone,
# sizes and schedule. The models come with the package, so that none are trained for one seed.
PUBLISHED_SETTINGS = {
    "queries": "learned",
    "num-queries": "64",
    "interactive-threshold": "0.5",
    "soft-weight": "700",
    "soft-normalisation": "entries",
}
RECIPE_TOY = toy(1000, "toy-1000")
RECIPE_CACHE = Artifact(
    "cache-1000",
    "eoid-cache build <toy> --out <out> --detector toy --clip-model toy",
    {"toy": RECIPE_TOY},
)
RECIPE_EPOCHS, LONG_RECIPE_EPOCHS, RECIPE_RATE, CURVE_EPOCHS, WARMUP_EPOCHS = 60, 200, "1e-4", 3, 30


def _recipe(options: str = "", epochs: int = RECIPE_EPOCHS, **changes: str) -> Artifact:
    """The published settings but for `changes`, with scores of the test images over the steps."""
    changed = {name.replace("_", "-"): value for name, value in changes.items()}
    settings = {**PUBLISHED_SETTINGS, **changed}
    return Artifact(
        "recipe",
        "eoid-train student --data <toy> --cache <cache> --split ua --out <out> --preset toy"
        f" --pretrained toy --seed <seed> --epochs {epochs} --batch-size {BATCH}"
        f" --learning-rate {RECIPE_RATE} --backbone-lr-factor {BACKBONE} --no-report"
        f" --test-every {CURVE_EPOCHS} {' '.join(f'--{n} {v}' for n, v in settings.items())}"
        f" {options}",
        {"toy": RECIPE_TOY, "cache": RECIPE_CACHE},
    )


EXPERIMENTS = (
    Experiment(
        "distillation",
        "Distillation on and off, for every kind of unseen class",
        (
            *_on_and_off("UA", "ua", "ua"),
            *_on_and_off("UC", "uc", "uc0"),
            *_on_and_off("UC, second draw", "uc-1"),
            *_on_and_off("rare first", "rf-uc", "rf-uc-138"),
            *_on_and_off("non-rare first", "nf-uc", "nf-uc"),
            *_on_and_off("UO", "uo"),
        ),
        "On HICO-DET with ResNet-50 the paper reports the numbers in the last column (UC: mean of"
        " five draws; rare first: with all 138 rare interactions). The same detector without"
        " distillation has about 8 unseen in UA.",
    ),
    Experiment(
        "topk",
        "Number of candidates per image (top-k)",
        _values("--topk", (1, 3, 5, 10), 3),
        f"The paper trains with 3. {NO_NUMBERS}",
        "candidates per image (top-k)",
    ),
    Experiment(
        "interactive-threshold",
        "Threshold of the interactive probability",
        _values("--interactive-threshold", (0, 0.1, 0.3, 0.5, 0.7), 0),
        f"The paper trains with 0.5. {NO_NUMBERS}",
        "threshold of the interactive probability",
    ),
    Experiment(
        "level",
        "Input of the teacher: union region or whole image",
        (
            _with_teacher("region", CACHE),
            _with_teacher("whole image", cache("image", "--level image"), "region"),
        ),
        f"The paper's teacher sees the union region. {NO_NUMBERS}",
    ),
    Experiment(
        "candidates",
        "Source of unlabelled pairs",
        (
            Variant("detector", PLAIN),
            Variant("annotated, labels removed", student("--candidates annotated"), "detector"),
        ),
        "The paper uses the annotated boxes of unseen pairs with their labels removed, so their"
        " locations are known.",
    ),
    Experiment(
        "soft-loss",
        "Normalisation and weight of the distillation loss",
        (
            Variant("supervised, 3", PLAIN),
            Variant("supervised, 1", _soft(1, "supervised"), "supervised, 3"),
            Variant("supervised, 10", _soft(10, "supervised"), "supervised, 3"),
            Variant("entries, 700", _soft(700, "entries"), "supervised, 3"),
            Variant(
                "entries, 700, labels by BCE",
                _soft(700, "entries", "--verb-loss bce_bce"),
                "supervised, 3",
            ),
        ),
        "The paper divides by all queries and verbs (entries), with weight 700, and gives labels a"
        " focal loss. That weight is for 64 queries and 117 verbs; the toy dataset has 20 and 11.",
    ),
    Experiment(
        "vdetach",
        "Verb gradients detached from localisation, or not",
        (
            Variant("detached", PLAIN),
            Variant("not detached", student("--no-vdetach"), "detached"),
        ),
        f"The paper detaches them. {NO_NUMBERS}",
    ),
    Experiment(
        "teacher",
        "Accuracy of the teacher and mAP of its student",
        (
            *(
                _with_teacher(f"{steps} steps", _short(steps), "500 steps")
                for steps in (25, POOR, 200)
            ),
            _with_teacher("500 steps", CACHE),
        ),
        f"The paper's teacher is CLIP RN50x16. {NO_NUMBERS}",
        "teacher's accuracy on annotated pairs, %",
    ),
    Experiment(
        "shots",
        "Few labels for every unseen interaction",
        _values("--shots", (0, 1, 2, 5, 10), 0),
        "Not in the paper, which uses no labels of unseen interactions.",
        "labelled pairs of every unseen interaction",
    ),
    Experiment(
        "more-images",
        f"Unlabelled images beside {NUM_LABELLED} labelled ones, equal numbers of steps",
        (
            Variant("labels alone", _few("--no-distillation"), "labels and teacher"),
            Variant("labels and teacher", _few()),
            Variant("2000 further images", _extra(FEW, FEW_CACHE, "ua"), "labels and teacher"),
        ),
        COCO_NUMBERS,
    ),
    Experiment(
        "new-actions",
        f"Unlabelled images beside {NUM_LABELLED} labelled ones and without four of the actions",
        (
            Variant("labels alone", _new_verbs("--no-distillation")),
            Variant("labels and teacher", _new_verbs(), "labels alone"),
            Variant(
                "2000 further images",
                _extra(REDUCED, REDUCED_CACHE, "new-actions"),
                "labels alone",
            ),
            Variant(
                "2000 further images, no distillation",
                _extra(REDUCED, REDUCED_CACHE, "new-actions", "--no-distillation"),
                "labels alone",
            ),
        ),
        COCO_NUMBERS,
    ),
    Experiment(
        "sentences",
        "One prompt or the mean of three, for teachers trained on all three",
        (
            *_one_and_three_prompts("good teacher (500 steps)", ""),
            *_one_and_three_prompts(
                f"poor teacher ({POOR} steps)", f"{POOR}-steps-", f"--teacher-steps {POOR}"
            ),
        ),
        f"The paper uses one prompt. {NO_NUMBERS}",
    ),
    Experiment(
        "verb-head",
        f"Verb head: one weight vector per action, or text embeddings ({TEXT_EPOCHS} epochs)",
        (
            Variant("weights (linear)", student(epochs=TEXT_EPOCHS)),
            Variant("sentences (text)", student(TEXT_HEAD, epochs=TEXT_EPOCHS), "weights (linear)"),
            Variant(
                "sentences, without the teacher's view of regions",
                student(f"{TEXT_HEAD} --embedding-weight 0", epochs=TEXT_EPOCHS),
                "weights (linear)",
            ),
        ),
        "The paper has a linear head.",
    ),
    Experiment(
        "unheard",
        f"Actions that are absent in training, detected by a prompt ({TEXT_EPOCHS} epochs)",
        tuple(row for verb in ("jump", "kick", "throw", "carry") for row in _new_verb(verb)),
        "Not in the paper, whose actions are fixed when a student is trained.",
    ),
    Experiment(
        "object-head",
        "Object head: one weight vector per object, or text embeddings, with two objects unlabelled"
        f" ({TEXT_EPOCHS} epochs)",
        (
            Variant("weights (linear)", student(split="uo", epochs=TEXT_EPOCHS)),
            Variant(
                "sentences (text)",
                student(OBJECT_HEAD, split="uo", epochs=TEXT_EPOCHS),
                "weights (linear)",
            ),
            Variant(
                "sentences, both heads",
                student(f"{TEXT_HEAD} {OBJECT_HEAD}", split="uo", epochs=TEXT_EPOCHS),
                "weights (linear)",
            ),
            Variant("the teacher, annotated pairs of training images", teacher_score(CACHE, "uo")),
            Variant(
                "sentences, objects absent in training",
                _evaluated("named-objects", NEW_OBJECTS_STUDENT, OBJECT_PROMPTS),
            ),
        ),
        "The paper has a linear head. In its UO split, as in the first rows here, the detector that"
        " proposes pairs knows the unlabelled objects.",
    ),
    Experiment(
        "recipe",
        f"The published settings on the toy dataset ({RECIPE_EPOCHS} epochs), and single changes",
        (
            Variant("published settings", _recipe(), "without the teacher"),
            Variant("without the teacher", _recipe("--no-distillation")),
            Variant("queries from proposals", _recipe(queries="proposals"), "published settings"),
            Variant(
                "interactive threshold 0",
                _recipe(interactive_threshold="0"),
                "published settings",
            ),
            Variant(
                "soft loss by matched pairs",
                _recipe(soft_normalisation="pairs", soft_weight="0.35"),
                "published settings",
            ),
            Variant(
                "interactive threshold from 0 to 0.5",
                _recipe(f"--interactive-warmup {WARMUP_EPOCHS}"),
                "published settings",
            ),
            Variant(
                f"published settings, {LONG_RECIPE_EPOCHS} epochs",
                _recipe(epochs=LONG_RECIPE_EPOCHS),
                "published settings",
            ),
        ),
        "The paper trains with learned queries, a threshold of 0.5, and a soft loss divided by all"
        " entries, with weight 700.",
        seeds=(0,),
        setting="These students are trained on 1,000 images with the models of the package. The"
        " backbone's weights are those of its detector. Sizes of the transformer and schedule (the"
        " rate falls to zero over the training) are those of the toy preset; queries, threshold and"
        " soft loss are the published ones. mAP on the test images over the training is drawn, and"
        " the table has its end.",
    ),
)
