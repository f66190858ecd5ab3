"""The experiments with a verb head that reads."""

from __future__ import annotations

from benchmarks.study.experiment import Experiment, Variant
from benchmarks.study.others import sentence
from benchmarks.study.pieces import TOY, Piece, cache, module, student
from pipeline.vocabulary import load_vocabulary

READS = ("--verb-head", "text")
# A head that reads takes longer to learn; found with a verb that is not among these (push, seed 0).
LONG = 5
LEFT_OUT = ("jump", "kick", "throw", "carry")
OTHERS, FILE = 3, "prompts.h5"


def _heard(verb: str) -> tuple[Variant, Variant]:
    """What a student finds of a verb that it never heard of, from its sentence and from others."""
    vocabulary = load_vocabulary("toy")
    words = ("<toy>", "--out", "<out>", "--verb", verb)
    smaller = module(f"without-{verb}", "unheard", *words, needs=(("toy", TOY),))
    answers = cache(f"without-{verb}", of=smaller)
    reader = student(*READS, by=answers, split="full", of=smaller, epochs=LONG)
    asked = ("eoid-cache", "prompts", "<cache>", "--add", sentence(vocabulary, verb, verb))
    needs = (("cache", answers),)
    own = Piece(f"sentence-{verb}", (*asked, "--out", f"<out>/{FILE}", "--overwrite"), needs, FILE)
    scored = ("--data", "<toy>", "--out", "<out>")
    needs = (("student", reader), ("toy", TOY))
    heard = ("eoid-train", "evaluate", "<student>", *scored, "--prompts", f"<own>/{FILE}")
    control = ("<student>", "--cache", "<cache>", *scored, "--verb", verb)
    count = ("--count", f"{OTHERS}", "--seed", "<seed>")
    name = vocabulary.verb_ings[vocabulary.verbs.index(verb)]
    return (
        Variant(
            f"{name}: its own sentence",
            Piece(f"own-{verb}", (*heard, "--overwrite"), (*needs, ("own", own))),
            f"{name}: others' sentences",
        ),
        Variant(
            f"{name}: others' sentences",
            module(f"others-{verb}", "others", *control, *count,
                   needs=(*needs, ("cache", answers)), proof="results.json"),
        ),
    )  # fmt: skip


UNHEARD = Experiment(
    "unheard",
    f"Actions nobody mentioned in training, found by a sentence ({LONG} epochs)",
    tuple(variant for verb in LEFT_OUT for variant in _heard(verb)),
    None,
    "Not in the paper, whose actions are fixed when a student is trained.",
)
HEAD = Experiment(
    "verb-head",
    f"One weight vector for each action, or its sentence ({LONG} epochs)",
    (
        Variant("weights (linear)", student(epochs=LONG)),
        Variant("sentences (text)", student(*READS, epochs=LONG)),
        Variant(
            "sentences, without the teacher's view of regions",
            student(*READS, "--embedding-weight", "0", epochs=LONG),
        ),
    ),
    "weights (linear)",
    "The paper has weights.",
)
