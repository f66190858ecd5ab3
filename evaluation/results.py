"""The results of an evaluation as `results.json`: metrics, AP of every class, paths of the run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from evaluation.hico.average_precision import HicoScores, summarize
from evaluation.hico.matching import Matches, Setting
from evaluation.vcoco.average_precision import (
    AGENT_AP,
    ROLE_AP,
    ROLE_AP_WITHOUT_POINT,
    SCENARIO_KEYS,
    VcocoResults,
)
from pipeline.splits import FULL
from pipeline.utils.errors import bad_field
from pipeline.utils.files import read_json, write_json
from pipeline.utils.schema import convert
from pipeline.vocabulary import Vocabulary

ResultKind = Literal["student", "teacher", "probe", "predictions"]
PairProtocol = Literal["detector", "annotated"]
# Name of the file in a run folder.
RESULTS_FILE = "results.json"
PATH_FIELDS = ("dataset_path", "annotations", "predictions", "metrics_log")
METRICS = ("full", "seen", "unseen", "harmonic_mean", "rare", "non_rare", "mean_max_recall")
# Fields that a file of V-COCO's scores alone has beside the scores.
VCOCO_FIELDS = ("name", "kind", "dataset", "vocabulary", "num_images", "limit", "training_limit")
# Values of the fields of the HICO-DET protocol in results that have only V-COCO's scores.
EMPTY_HICO_FIELDS: dict[str, Any] = {
    "split": FULL,
    "unseen": (),
    "setting": "default",
    "metrics": dict.fromkeys(METRICS),
    "per_class": {},
}


@dataclass(frozen=True)
class SettingScores:
    """The numbers of a second HICO-DET setting; fields as in `Results`."""

    metrics: dict[str, float | None]
    per_class: dict[str, float]
    per_verb: dict[str, float]
    per_object: dict[str, float]
    splits: dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class Results:
    """The results of one evaluation.

    Attributes:
        name: display name of the run.
        kind: source of the predictions: `probe` is a verb head on cached embeddings, `predictions`
            a file of unknown origin.
        dataset, vocabulary, split: names; `metrics` is grouped by the split.
        unseen: HOI indices that the split holds out.
        setting: HICO-DET setting of the numbers.
        metrics: `METRICS` as fractions, None for a group without ground truth; the harmonic mean of
            seen and unseen only if the split holds out interactions.
        per_class: AP of every interaction with ground truth, by `Vocabulary.interaction_name`.
        num_images: number of annotated test images.
        limit, training_limit: numbers of images to which an option `--limit` limited the test and
            the training images; None for all of them.
        protocol: candidate pairs from a frozen detector or from annotated boxes; None unknown.
        training_split: split that the student or probe was trained on, `full` for all labels; None
            unknown.
        distillation: whether it was distilled from the teacher; None unknown.
        seed: of the run.
        recipe: SHA-256 of the settings of a run's training, with its limit but without its
            seeds; None unknown.
        dataset_path, annotations, predictions, metrics_log: folder of the test dataset, file of the
            test annotations (for results without such a folder), predictions file and training log;
            relative to the results file on disk, usable paths here.
        shots: number of labelled pairs of every unseen interaction in the training data.
        sources: further training data: `name`, `cache` (its fingerprint), `images`, the number of
            `labelled` ones among them, and `protocol`.
        extra: further fractions for the report, by name, the most important first.
        per_verb, per_object: mAP over the interactions of each verb and of each object with ground
            truth.
        splits: `seen` and `unseen` mAP for every split of the vocabulary, by name.
        known_object: the same numbers in the known-object setting, if both settings were scored.
        nms: settings of the pairwise NMS before scoring, None without.
        vcoco: V-COCO's scores; in results that have only these, all `metrics` are None and
            `per_class` is empty.
        matches: the scored detections matched to the annotations; not stored on disk.
    """

    name: str
    kind: ResultKind
    dataset: str
    vocabulary: str
    split: str
    unseen: tuple[int, ...]
    setting: Setting
    metrics: dict[str, float | None]
    per_class: dict[str, float]
    num_images: int
    protocol: PairProtocol | None = None
    training_split: str | None = None
    distillation: bool | None = None
    seed: int | None = None
    limit: int | None = None
    training_limit: int | None = None
    recipe: str | None = None
    shots: int = 0
    sources: tuple[dict[str, Any], ...] = ()
    dataset_path: Path | None = None
    annotations: Path | None = None
    predictions: Path | None = None
    metrics_log: Path | None = None
    extra: dict[str, float] = field(default_factory=dict)
    per_verb: dict[str, float] = field(default_factory=dict)
    per_object: dict[str, float] = field(default_factory=dict)
    splits: dict[str, dict[str, float | None]] = field(default_factory=dict)
    known_object: SettingScores | None = None
    nms: dict[str, float] | None = None
    vcoco: VcocoResults | None = None
    matches: Matches | None = field(default=None, repr=False, compare=False)

    @property
    def limit_note(self) -> str:
        """Which of the images were limited; "" for results of whole datasets."""
        limits = {"trained": self.training_limit, "evaluated": self.limit}
        notes = [f"{verb} with --limit {n}" for verb, n in limits.items() if n is not None]
        return " and ".join(notes)


def vcoco_only_results(**fields: Any) -> Results:
    """Results that have V-COCO's scores only."""
    return Results(**{**EMPTY_HICO_FIELDS, "kind": "predictions", **fields})


def results_fields(
    scores: HicoScores, vocabulary: Vocabulary, unseen: tuple[int, ...]
) -> dict[str, Any]:
    """The fields of `Results` that follow from scores and from a split's unseen interactions."""
    return {
        "vocabulary": vocabulary.name,
        "unseen": tuple(int(index) for index in unseen),
        **asdict(build_setting_scores(scores, vocabulary, unseen)),
    }


def build_setting_scores(
    scores: HicoScores, vocabulary: Vocabulary, unseen: tuple[int, ...]
) -> SettingScores:
    """All numbers of one setting."""
    interactions = [vocabulary.interaction_name(i) for i in range(vocabulary.num_interactions)]
    groups = {
        name: summarize(scores, vocabulary, split["unseen"])
        for name, split in vocabulary.splits.items()
    }
    return SettingScores(
        metrics=summarize(scores, vocabulary, unseen),
        per_class=_values_by_name(interactions, scores.average_precision),
        per_verb=_values_by_name(vocabulary.verbs, scores.verb_means(vocabulary)),
        per_object=_values_by_name(vocabulary.objects, scores.object_means(vocabulary)),
        splits={
            name: {group: means[group] for group in ("seen", "unseen")}
            for name, means in groups.items()
        },
    )


def _values_by_name(names: Sequence[str], values: np.ndarray) -> dict[str, float]:
    return {
        name.replace("_", " "): float(value)
        for name, value in zip(names, values, strict=True)
        if not np.isnan(value)
    }


def write_results(path: Path | str, results: Results) -> None:
    """Writes `results.json`; its paths are relative, so that a run folder can be moved."""
    value = asdict(replace(results, matches=None))
    del value["matches"]
    write_json(path, {**value, **_relative_paths(path, results)})


def write_vcoco_results(path: Path | str, results: Results) -> None:
    """Writes V-COCO's scores alone; `read_results` reads this form as well."""
    assert results.vcoco is not None, "V-COCO's scores are the content of the file"
    fields = {name: getattr(results, name) for name in VCOCO_FIELDS}
    write_json(path, {**fields, **_relative_paths(path, results), **asdict(results.vcoco)})


def _relative_paths(path: Path | str, results: Results) -> dict[str, str | None]:
    folder = Path(path).resolve().parent
    return {
        name: os.path.relpath(target.resolve(), folder)
        if (target := getattr(results, name))
        else None
        for name in PATH_FIELDS
    }


def read_results(path: Path | str) -> Results:
    """Reads `results.json`, or a file of V-COCO's scores alone.

    Raises:
        InputError: the file is missing, is not JSON, or a field is missing or invalid.
    """
    value = read_json(path)
    if isinstance(value, dict) and "per_action" in value:
        value = {**value, **EMPTY_HICO_FIELDS, "vcoco": convert(value, VcocoResults, path)}
    results = convert(value, Results, path)
    missing = set(METRICS) - {"harmonic_mean", *results.metrics}
    if results.vcoco is not None:
        missing |= {AGENT_AP, *ROLE_AP, *ROLE_AP_WITHOUT_POINT} - results.vcoco.metrics.keys()
        for action, scores in results.vcoco.per_action.items():
            for role, numbers in scores.roles.items():
                for key in set(SCENARIO_KEYS) - numbers.keys():
                    where = f"per_action.{action}.roles.{role}.{key}"
                    raise bad_field(path, where, "a fraction or null", "nothing")
    if missing:
        raise bad_field(path, f"metrics.{min(missing)}", "a fraction or null", "nothing")
    folder = Path(path).parent
    paths = {name: folder / file for name in PATH_FIELDS if (file := getattr(results, name))}
    return replace(results, **paths)
