"""The experiments with the text verb head."""

from __future__ import annotations

from benchmarks.study.artifacts import TOY, Artifact, cache, student, study_module
from benchmarks.study.experiment import Experiment, Variant
from benchmarks.study.other_prompts import prompt_to_add
from pipeline.vocabulary import load_vocabulary

TEXT_HEAD = ("--verb-head", "text")
# The text head needs longer training; determined with another verb (push, seed 0).
EPOCHS = 5
NEW_VERBS = ("jump", "kick", "throw", "carry")
NUM_OTHERS, PROMPTS_FILE = 3, "prompts.h5"


def _new_verb_rows(verb: str) -> tuple[Variant, Variant]:
    """Scores of a verb that is absent in training, from its own prompt and from other prompts."""
    vocabulary = load_vocabulary("toy")
    words = ("<toy>", "--out", "<out>", "--verb", verb)
    smaller = study_module(
        f"without-{verb}", "vocabulary_without_verb", *words, inputs=(("toy", TOY),)
    )
    smaller_cache = cache(f"without-{verb}", dataset=smaller)
    run = student(*TEXT_HEAD, cache=smaller_cache, split="full", dataset=smaller, epochs=EPOCHS)
    prompts = ("eoid-cache", "prompts", "<cache>", "--add", prompt_to_add(vocabulary, verb, verb))
    inputs = (("cache", smaller_cache),)
    own_prompt = Artifact(
        f"sentence-{verb}",
        (*prompts, "--out", f"<out>/{PROMPTS_FILE}", "--overwrite"),
        inputs,
        PROMPTS_FILE,
    )
    common = ("--data", "<toy>", "--out", "<out>")
    inputs = (("student", run), ("toy", TOY))
    evaluation = (
        "eoid-train",
        "evaluate",
        "<student>",
        *common,
        "--prompts",
        f"<own_prompt>/{PROMPTS_FILE}",
    )
    control = ("<student>", "--cache", "<cache>", *common, "--verb", verb)
    count = ("--count", f"{NUM_OTHERS}", "--seed", "<seed>")
    name = vocabulary.verb_ings[vocabulary.verbs.index(verb)]
    return (
        Variant(
            f"{name}: its own sentence",
            Artifact(
                f"own-{verb}", (*evaluation, "--overwrite"), (*inputs, ("own_prompt", own_prompt))
            ),
            f"{name}: others' sentences",
        ),
        Variant(
            f"{name}: others' sentences",
            study_module(
                f"others-{verb}",
                "other_prompts",
                *control,
                *count,
                inputs=(*inputs, ("cache", smaller_cache)),
                output_file="results.json",
            ),
        ),
    )


NEW_VERBS_BY_PROMPT = Experiment(
    "unheard",
    f"Actions that are absent in training, detected by a prompt ({EPOCHS} epochs)",
    tuple(variant for verb in NEW_VERBS for variant in _new_verb_rows(verb)),
    None,
    "Not in the paper, whose actions are fixed when a student is trained.",
)
HEAD = Experiment(
    "verb-head",
    f"Verb head: one weight vector per action, or text embeddings ({EPOCHS} epochs)",
    (
        Variant("weights (linear)", student(epochs=EPOCHS)),
        Variant("sentences (text)", student(*TEXT_HEAD, epochs=EPOCHS)),
        Variant(
            "sentences, without the teacher's view of regions",
            student(*TEXT_HEAD, "--embedding-weight", "0", epochs=EPOCHS),
        ),
    ),
    "weights (linear)",
    "The paper has a linear head.",
)
