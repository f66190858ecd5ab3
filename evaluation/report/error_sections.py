"""Sections of the report from single detections: precision and recall, error kinds, confusion."""

from __future__ import annotations

import numpy as np

from evaluation.analysis.comparison import Comparison
from evaluation.analysis.confusion import compute_verb_confusion
from evaluation.analysis.error_kinds import (
    ERROR_DEFINITIONS,
    ERROR_TITLES,
    classify_errors,
    count_errors,
    top_scoring_mask,
)
from evaluation.analysis.precision_recall import (
    MIN_POSITIVES,
    precision_recall_curve,
    select_interactions,
)
from evaluation.report.charts.bars import ErrorRow, error_bars
from evaluation.report.charts.plots import (
    MAX_SIDE_BY_SIDE,
    CurvePanel,
    confusion_matrix,
    precision_recall_curves,
)
from evaluation.report.inputs import ReportInputs
from evaluation.report.sections import Section, Table
from evaluation.tables import format_percent

MAX_CONFUSIONS = 12


def build_precision_recall_sections(comparison: Comparison, inputs: ReportInputs) -> list[Section]:
    """Precision-recall curves of selected interactions; no section without detections."""
    if not inputs.predictions:
        return []
    vocabulary = comparison.vocabulary
    names = [vocabulary.interaction_name(index) for index in range(vocabulary.num_interactions)]
    lead = inputs.predictions[0]
    counts = lead.matched.num_positives(vocabulary.num_interactions)
    average_precision = [lead.result.per_class.get(name) for name in names]
    panels = [
        CurvePanel(
            names[index],
            rank,
            index in comparison.unseen,
            int(counts[index]),
            tuple(
                (
                    predictions.entry,
                    precision_recall_curve(predictions.matched, index, int(counts[index])),
                    predictions.result.per_class.get(names[index]),
                )
                for predictions in inputs.predictions
            ),
        )
        for index, rank in select_interactions(average_precision, counts, comparison.unseen)
        if counts[index]
    ]
    if not panels:
        return []
    note = (
        f"The interactions are selected by the AP of {lead.entry.title.lower()}, from those with at"
        f" least {MIN_POSITIVES} labelled instances if there are enough."
    )
    return [Section("curves", "Precision and recall", note, (precision_recall_curves(panels),))]


def build_error_sections(comparison: Comparison, inputs: ReportInputs) -> list[Section]:
    """Kinds of errors of each entry; no section without detections."""
    if not inputs.predictions:
        return []
    vocabulary = comparison.vocabulary
    interactions = range(vocabulary.num_interactions)
    unseen = set(comparison.unseen)
    groups = {"all": list(interactions)}
    if unseen:
        groups = {
            "unseen": sorted(unseen),
            "seen": [index for index in interactions if index not in unseen],
        }
    rows, table = [], []
    for predictions in inputs.predictions:
        title = predictions.entry.title
        kinds = classify_errors(predictions.matched, vocabulary)
        for counted, selection in (
            (top_scoring_mask(predictions.matched, vocabulary), "best-scoring"),
            (np.ones(len(kinds), dtype=bool), "all"),
        ):
            for group, members in groups.items():
                counts = count_errors(predictions.matched, kinds, counted, members)
                if selection == "best-scoring":
                    rows.append(ErrorRow(title, group, counts))
                numbers = (
                    f"{counts.num_correct:,}",
                    f"{counts.num_wrong:,}",
                    *map(format_percent, counts.shares),
                )
                table.append((title, group, selection, *numbers))
    if not any(row.counts.num_wrong for row in rows):
        return []
    rows.sort(key=lambda row: list(groups).index(row.group))
    note = (
        "Kinds of false positives. Detections with scores near zero hardly change the AP, so for"
        " each interaction with N labelled instances the N best-scoring detections are counted."
    )
    header = ("", "interactions", "detections", "correct", "wrong", *ERROR_TITLES.values())
    return [
        Section(
            "errors",
            "Kinds of errors",
            note,
            (error_bars(rows),),
            {ERROR_TITLES[name]: text for name, text in ERROR_DEFINITIONS.items()},
            (Table("Errors: shares by kind in % of the wrong detections", header, tuple(table)),),
        )
    ]


def build_confusion_sections(comparison: Comparison, inputs: ReportInputs) -> list[Section]:
    """Confusion between verbs for the first entries; no section without detections."""
    vocabulary = comparison.vocabulary
    verbs = [verb.replace("_", " ") for verb in vocabulary.verbs]
    unseen = comparison.unseen_verbs
    charts, rows = [], []
    for number, predictions in enumerate(inputs.detailed, start=1):
        confusion = compute_verb_confusion(predictions.matched, vocabulary)
        if not confusion.num_found:
            continue
        title = predictions.entry.title
        charts.append(confusion_matrix(confusion, verbs, unseen, title, f"confusion-{number}"))
        for labelled, predicted, pairs in confusion.most_frequent(MAX_CONFUSIONS):
            rows.append((title, verbs[labelled], verbs[predicted], f"{pairs:g}"))
    if not charts:
        return []
    note = (
        "Rows are the verbs of labelled pairs that are detected (correct object class, IoU ≥ 0.5 of"
        " both boxes), columns the verb of the best-scoring detection, in % of the row. A correct"
        " verb is counted in its own row, a wrong one is spread over the rows of the pair's labels."
    )
    header = ("", "labelled", "predicted", "pairs")
    table = Table("Most frequent confusions", header, tuple(rows))
    return [
        Section(
            "confusion",
            "Confusion among verbs",
            note,
            tuple(charts),
            tables=(table,) if rows else (),
            side_by_side=vocabulary.num_verbs <= MAX_SIDE_BY_SIDE,
        )
    ]
