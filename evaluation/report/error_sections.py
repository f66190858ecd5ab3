"""The sections that look at single detections."""

from __future__ import annotations

import numpy as np

from evaluation.analysis.comparison import Comparison
from evaluation.analysis.confusion import compute_verb_confusion
from evaluation.analysis.error_kinds import (
    ERROR_DEFINITIONS,
    ERROR_KINDS,
    ERROR_TITLES,
    classify_errors,
    count_errors,
    top_scoring_mask,
)
from evaluation.analysis.precision_recall import precision_recall_curve, select_interactions
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
    """Precision-recall curves of chosen interactions; none without detections."""
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
            place,
            index in comparison.unseen,
            int(counts[index]),
            tuple(
                (
                    view.entry,
                    precision_recall_curve(view.matched, index, int(counts[index])),
                    view.result.per_class.get(names[index]),
                )
                for view in inputs.predictions
            ),
        )
        for index, place in select_interactions(average_precision, counts, comparison.unseen)
        if counts[index]
    ]
    if not panels:
        return []
    note = (
        f"Chosen by the AP of {lead.entry.title.lower()} among interactions with at least five"
        " labelled instances, where there are enough."
    )
    return [Section("curves", "Precision and recall", note, (precision_recall_curves(panels),))]


def build_error_sections(comparison: Comparison, inputs: ReportInputs) -> list[Section]:
    """Kinds of errors of each entry; none without detections."""
    if not inputs.predictions:
        return []
    vocabulary = comparison.vocabulary
    everything = range(vocabulary.num_interactions)
    unseen = set(comparison.unseen)
    groups = {"all": list(everything)}
    if unseen:
        groups = {
            "unseen": sorted(unseen),
            "seen": [index for index in everything if index not in unseen],
        }
    rows, table = [], []
    for view in inputs.predictions:
        kinds = classify_errors(view.matched, vocabulary)
        for counted, which in (
            (top_scoring_mask(view.matched, vocabulary), "best-scoring"),
            (np.ones(len(kinds), dtype=bool), "all"),
        ):
            for group, members in groups.items():
                found = count_errors(view.matched, kinds, counted, members)
                if which == "best-scoring":
                    rows.append(ErrorRow(view.entry.title, group, found))
                numbers = (
                    f"{found.num_correct:,}",
                    f"{found.num_wrong:,}",
                    *map(format_percent, found.shares),
                )
                table.append((view.entry.title, group, which, *numbers))
    if not any(row.counts.num_wrong for row in rows):
        return []
    rows.sort(key=lambda row: list(groups).index(row.group))
    note = (
        "What is wrong with wrong detections. Detections with scores near zero cost nothing, so of"
        " every interaction only as many best-scoring detections count as it has labelled"
        " instances."
    )
    head = (
        "",
        "interactions",
        "detections",
        "right",
        "wrong",
        *(ERROR_TITLES[k] for k in ERROR_KINDS),
    )
    return [
        Section(
            "errors",
            "Kinds of errors",
            note,
            (error_bars(rows),),
            {ERROR_TITLES[name]: text for name, text in ERROR_DEFINITIONS.items()},
            (Table("Errors: shares by kind in % of the wrong detections", head, tuple(table)),),
        )
    ]


def build_confusion_sections(comparison: Comparison, inputs: ReportInputs) -> list[Section]:
    """Confusion among verbs of the first entries; none without detections."""
    vocabulary = comparison.vocabulary
    verbs = [verb.replace("_", " ") for verb in vocabulary.verbs]
    unseen = comparison.unseen_verbs
    charts, rows = [], []
    for place, view in enumerate(inputs.detailed):
        confusion = compute_verb_confusion(view.matched, vocabulary)
        if not confusion.num_found:
            continue
        title = view.entry.title
        charts.append(confusion_matrix(confusion, verbs, unseen, title, f"confusion-{place + 1}"))
        for labelled, said, pairs in confusion.most_frequent(MAX_CONFUSIONS):
            rows.append((title, verbs[labelled], verbs[said], f"{pairs:g}"))
    if not charts:
        return []
    note = (
        "Labelled pairs that were found (right object, both boxes overlapping by half), by"
        " labelled verb, and the verb of the best-scoring detection that found them, in % of the"
        " row. A right verb stands in its own row; a wrong one is shared among the pair's labels."
    )
    head = ("", "labelled", "predicted", "pairs")
    table = Table("Most frequent confusions", head, tuple(rows))
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
