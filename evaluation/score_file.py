"""Scores a predictions file, ours or another project's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from evaluation.hico import Setting, evaluate
from evaluation.nms import pairwise_nms
from evaluation.predictions import read_predictions
from evaluation.results import Results, score_fields, write_results
from evaluation.wording import results_table
from pipeline.annotations import load_annotations
from pipeline.errors import InputError
from pipeline.files import refuse_existing
from pipeline.splits import load_split
from pipeline.vocabulary import load_vocabulary

SETTINGS: dict[str, tuple[Setting, ...]] = {
    "default": ("default",),
    "known-object": ("known_object",),
    "both": ("default", "known_object"),
}


@dataclass(frozen=True)
class ScoreConfig:
    """What to score, and how.

    Attributes:
        predictions, annotations: files.
        vocabulary, split: names or files.
        settings: HICO-DET settings, one or both.
        nms: pairwise NMS first.
        strict: refuse annotations with blemishes.
        json: results file to write, for one setting.
        overwrite: replace it.
    """

    predictions: Path
    annotations: Path
    vocabulary: str = "hico-det"
    split: str = "full"
    settings: tuple[Setting, ...] = ("default",)
    nms: bool = False
    strict: bool = False
    json: Path | None = None
    overwrite: bool = False


def score_file(config: ScoreConfig) -> list[str]:
    """Scores the predictions and writes the results where wanted.

    Returns:
        a table for people.

    Raises:
        InputError: a file is missing or wrong, or there are predictions for other images.
    """
    if config.json is not None:
        if len(config.settings) > 1:
            raise InputError("--json: expected one setting, found both; run once for each")
        refuse_existing(config.json, config.overwrite)
    vocabulary = load_vocabulary(config.vocabulary)
    split = load_split(vocabulary, config.split)
    truth = load_annotations(config.annotations, vocabulary, "test", config.strict)
    detections = read_predictions(config.predictions, vocabulary)
    if config.nms:
        detections = [pairwise_nms(item) for item in detections]
    results = [
        Results(
            name=config.predictions.stem,
            kind="predictions",
            dataset=vocabulary.name,
            split=split.name,
            setting=setting,
            num_images=len(truth.annotations),
            predictions=config.predictions,
            **score_fields(
                evaluate(truth.annotations, detections, vocabulary, setting),
                vocabulary,
                split.unseen,
            ),
        )
        for setting in config.settings
    ]
    if config.json is not None:
        write_results(config.json, results[0])
    silent = len(truth.annotations) - len(detections)
    notes = [truth.blemish_line()]
    if silent:
        notes.append(f"{silent} of {len(truth.annotations)} images have no predictions")
    return [*results_table(results), *filter(None, notes)]
