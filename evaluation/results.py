"""A run's results on disk: metrics, AP of every interaction, and where the rest of the run lies."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np

from evaluation.hico.average_precision import HicoScores, summarize
from evaluation.hico.matching import Matches, Setting
from evaluation.vcoco.average_precision import SCENARIOS, VcocoScores
from pipeline.splits import FULL
from pipeline.utils.errors import bad_field
from pipeline.utils.files import read_json, write_json
from pipeline.vocabulary import Vocabulary

ResultKind = Literal["student", "teacher", "predictions"]
PairProtocol = Literal["detector", "annotated"]
PATH_FIELDS = ("dataset_path", "annotations", "predictions", "metrics_log")
VCOCO_FIELDS = ("name", "kind", "dataset", "vocabulary", "num_images")
METRICS = ("full", "seen", "unseen", "harmonic_mean", "rare", "non_rare", "mean_max_recall")
# There only where the split holds something back.
OPTIONAL_METRICS = ("harmonic_mean",)
# What stands in place of the HICO-DET protocol's scores where there are only V-COCO's, and what
# earlier files of V-COCO's scores did not say.
EMPTY_HICO_FIELDS: dict[str, Any] = {
    "split": FULL,
    "unseen": [],
    "setting": "default",
    "metrics": dict.fromkeys(METRICS),
    "per_class": {},
}
VCOCO_FILE_DEFAULTS = {"kind": "predictions", "vocabulary": "vcoco"}


@dataclass(frozen=True)
class SettingScores:
    """The numbers of a further setting, as in `Results`."""

    metrics: dict[str, float | None]
    per_class: dict[str, float]
    per_verb: dict[str, float]
    per_object: dict[str, float]
    splits: dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class Results:
    """What one evaluation found.

    Attributes:
        name: what people call the run.
        kind: who made the predictions; `predictions` for a file of unknown making.
        dataset, vocabulary, split: names; the split is the one whose groups `metrics` has.
        unseen: HOI indices the split held back.
        setting: HICO-DET setting.
        metrics: `METRICS` as fractions, None for a group without ground truth; the harmonic mean
            of seen and unseen only where the split holds something back.
        per_class: AP of every interaction with ground truth, by `Vocabulary.interaction_name`.
        num_images: annotated test images.
        protocol: candidate pairs from a frozen detector or from annotated boxes; None unknown.
        training_split: split the student was trained on, `full` for all labels.
        distillation: the student learned from the teacher's answers.
        seed: of the run.
        dataset_path, annotations, predictions, metrics_log: the test dataset's folder, the file
            of its test annotations (told where there may be no such folder), the predictions
            file and the training log; relative to the results file on disk, usable paths here.
        shots: labelled pairs of every unseen interaction that the student saw all the same.
        sources: further sources it learned from: `name`, `cache` (its fingerprint), `images`, how
            many of these are `labelled`, and `protocol`.
        extra: further fractions worth reporting, by name, the most telling first.
        per_verb, per_object: mAP over the interactions of each verb and object that has some with
            ground truth.
        splits: `seen` and `unseen` mAP for every split of the vocabulary, by name.
        known_object: the same numbers in the known-object setting, where both were asked for.
        nms: settings of the pairwise NMS before scoring, None without.
        vcoco: V-COCO's own scores; where there are only these, all of `metrics` is None and
            nothing is in `per_class`.
        matches: the detections held against the annotations, as scored; not on disk.
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


def vcoco_only_results(**fields: Any) -> Results:
    """Results that have V-COCO's scores only."""
    return Results(**{**EMPTY_HICO_FIELDS, "unseen": (), "kind": "predictions", **fields})


def results_fields(
    scores: HicoScores, vocabulary: Vocabulary, unseen: tuple[int, ...]
) -> dict[str, Any]:
    """The fields of `Results` that follow from scores, for a split's unseen interactions."""
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
    """Writes `results.json`; paths become relative to it, so a run folder can be moved."""
    value = asdict(replace(results, matches=None))
    del value["matches"]
    write_json(path, {**value, **_relative_paths(path, results)})


def write_vcoco_results(path: Path | str, results: Results) -> None:
    """Writes V-COCO's scores as a file of their own, which `read_results` reads too."""
    assert results.vcoco is not None, "there is nothing else in this file"
    about = {name: getattr(results, name) for name in VCOCO_FIELDS}
    write_json(path, {**about, **_relative_paths(path, results), **asdict(results.vcoco)})


def _relative_paths(path: Path | str, results: Results) -> dict[str, str | None]:
    folder = Path(path).resolve().parent
    return {
        name: os.path.relpath(place.resolve(), folder)
        if (place := getattr(results, name))
        else None
        for name in PATH_FIELDS
    }


def read_results(path: Path | str) -> Results:
    """Reads `results.json`.

    Raises:
        InputError: the file is missing, is not JSON, or a field is missing or wrong.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise bad_field(path, "file", "results of an evaluation", value)
    vcoco = None
    if "per_action" in value:
        vcoco, value = (
            parse_vcoco_results(path, value),
            {**VCOCO_FILE_DEFAULTS, **value, **EMPTY_HICO_FIELDS},
        )
    elif value.get("vcoco"):
        vcoco = parse_vcoco_results(path, value["vcoco"])
    folder = Path(path).parent

    def text(name: str) -> str:
        return cast(str, typed_field(path, value, name, str, "a text"))

    def choice(name: str, choices: tuple[str, ...]) -> Any:
        found = value.get(name)
        if found not in choices:
            raise bad_field(path, name, f"one of {', '.join(choices)}", found)
        return found

    def optional(name: str, kind: type, expected: str) -> Any:
        return (
            typed_field(path, value, name, kind, expected) if value.get(name) is not None else None
        )

    def beside(name: str) -> Path | None:
        relative = optional(name, str, "a path")
        return None if relative is None else folder / relative

    unseen = typed_field(path, value, "unseen", list, "a list of interaction numbers")
    if not all(isinstance(index, int) for index in unseen):
        raise bad_field(path, "unseen", "a list of interaction numbers", unseen)
    metrics = number_table(path, value, "metrics", optional=True)
    for name in METRICS:
        if name not in metrics and name not in OPTIONAL_METRICS:
            raise bad_field(path, f"metrics.{name}", "a fraction or null", None)
    return Results(
        name=text("name"),
        kind=choice("kind", get_args(ResultKind)),
        dataset=text("dataset"),
        vocabulary=text("vocabulary"),
        split=text("split"),
        unseen=tuple(unseen),
        setting=choice("setting", get_args(Setting)),
        metrics=metrics,
        per_class=cast(dict[str, float], number_table(path, value, "per_class")),
        num_images=typed_field(path, value, "num_images", int, "a whole number"),
        protocol=choice("protocol", get_args(PairProtocol)) if value.get("protocol") else None,
        training_split=optional("training_split", str, "a split's name"),
        distillation=optional("distillation", bool, "true or false"),
        seed=optional("seed", int, "a whole number"),
        shots=optional("shots", int, "a whole number") or 0,
        sources=tuple(optional("sources", list, "a list of sources") or ()),
        dataset_path=beside("dataset_path"),
        annotations=beside("annotations"),
        predictions=beside("predictions"),
        metrics_log=beside("metrics_log"),
        extra=cast(dict[str, float], number_table(path, {"extra": {}, **value}, "extra")),
        nms=cast(dict[str, float], number_table(path, value, "nms")) if value.get("nms") else None,
        **_read_detail_fields(path, value),
        known_object=_read_known_object(path, value.get("known_object")),
        vcoco=vcoco,
    )


def _read_detail_fields(path: Path | str, value: dict[str, Any]) -> dict[str, Any]:
    """The parts that results of earlier versions lack."""
    known = {"per_verb": {}, "per_object": {}, "splits": {}, **value}
    splits = typed_field(path, known, "splits", dict, "groups by split")
    return {
        "per_verb": number_table(path, known, "per_verb"),
        "per_object": number_table(path, known, "per_object"),
        "splits": {name: number_table(path, splits, name, optional=True) for name in splits},
    }


def _read_known_object(path: Path | str, value: Any) -> SettingScores | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise bad_field(path, "known_object", "metrics and AP of the known-object setting", value)
    return SettingScores(
        metrics=number_table(path, value, "metrics", optional=True),
        per_class=cast(dict[str, float], number_table(path, value, "per_class")),
        **_read_detail_fields(path, value),
    )


def typed_field(
    path: Path | str, value: dict[str, Any], name: str, kind: type, expected: str
) -> Any:
    """A field of a type.

    Args:
        kind: the type.
        expected: what an error says was expected.

    Raises:
        InputError: it is missing or of another type.
    """
    if not isinstance(value.get(name), kind):
        raise bad_field(path, name, expected, value.get(name))
    return value[name]


def number_table(
    path: Path | str, value: dict[str, Any], name: str, optional: bool = False
) -> dict[str, float | None]:
    """A table of numbers by name.

    Args:
        optional: null is a number too.

    Raises:
        InputError: it is missing, no table, or a value is no number.
    """
    table = typed_field(path, value, name, dict, "numbers by name")
    for key, number in table.items():
        if not (isinstance(number, int | float) or (optional and number is None)):
            raise bad_field(path, f"{name}.{key}", "a number", number)
    return table


AGENT_AP = "average_agent_ap"
ROLE_AP = tuple(f"average_role_ap_scenario_{scenario}" for scenario in SCENARIOS)
# The mean that papers print; files of earlier versions lack it.
ROLE_AP_WITHOUT_POINT = tuple(f"{name}_without_point" for name in ROLE_AP)
SCENARIO_KEYS = tuple(f"scenario_{scenario}" for scenario in SCENARIOS)


@dataclass(frozen=True)
class ActionResults:
    """One action; fractions, None where nobody does it.

    Attributes:
        positives: annotated people who do it.
        agent_ap: AP of its agents.
        roles: by role, AP by scenario (`SCENARIO_KEYS`).
    """

    positives: int
    agent_ap: float | None
    roles: dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class VcocoResults:
    """The averages (`AGENT_AP`, `ROLE_AP`, `ROLE_AP_WITHOUT_POINT`; None where nothing counts) and
    every action."""

    metrics: dict[str, float | None]
    per_action: dict[str, ActionResults]


def build_vcoco_results(scores: VcocoScores) -> VcocoResults:
    """Scores as they are written down."""

    def fraction(value: float) -> float | None:
        return None if np.isnan(value) else float(value)

    per_action = {
        action.name: ActionResults(
            int(scores.num_positives[row]),
            fraction(scores.agent_ap[row]),
            {
                role: {
                    key: fraction(scores.role_ap[scenario][row, place])
                    for scenario, key in zip(SCENARIOS, SCENARIO_KEYS, strict=True)
                }
                for place, role in enumerate(action.roles)
            },
        )
        for row, action in enumerate(scores.actions)
    }
    return VcocoResults(scores.metrics(), per_action)


def parse_vcoco_results(path: Path | str, value: Mapping[str, Any]) -> VcocoResults:
    """Reads what `dataclasses.asdict` makes of `VcocoResults`.

    Raises:
        InputError: a field is missing or wrong.
    """
    metrics = _require_table(path, "metrics", value.get("metrics"))
    metrics = {**dict.fromkeys(ROLE_AP_WITHOUT_POINT), **metrics}
    per_action = {}
    for name, entry in _require_table(path, "per_action", value.get("per_action")).items():
        place = f"per_action.{name}"
        entry = _require_table(path, place, entry)
        positives = entry.get("positives")
        if not isinstance(positives, int):
            raise bad_field(path, f"{place}.positives", "a number of people", positives)
        roles = _require_table(path, f"{place}.roles", entry.get("roles"))
        per_action[name] = ActionResults(
            positives,
            _read_fraction(path, entry, "agent_ap", f"{place}."),
            {
                role: {
                    key: _read_fraction(path, scores, key, f"{place}.roles.{role}.")
                    for key in SCENARIO_KEYS
                }
                for role in roles
                if (scores := _require_table(path, f"{place}.roles.{role}", roles[role]))
                is not None
            },
        )
    return VcocoResults(
        {
            name: _read_fraction(path, metrics, name, "metrics.")
            for name in (AGENT_AP, *ROLE_AP, *ROLE_AP_WITHOUT_POINT)
        },
        per_action,
    )


def _require_table(path: Path | str, name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise bad_field(path, name, "numbers by name", value)
    return value


def _read_fraction(path: Path | str, table: dict[str, Any], name: str, place: str) -> float | None:
    value = table.get(name, "nothing")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise bad_field(path, f"{place}{name}", "a fraction or null", value)
    return value
