"""The sections that look at single detections."""

from __future__ import annotations

import numpy as np

from evaluation.analysis.comparison import Comparison
from evaluation.analysis.confusion import verb_confusion
from evaluation.analysis.error_kinds import (
    DEFINITIONS,
    ERROR_KINDS,
    TITLES,
    best_scoring,
    count_errors,
    error_kinds,
)
from evaluation.analysis.precision_recall import choose_interactions, precision_recall
from evaluation.report.charts.bars import ErrorRow, error_bars
from evaluation.report.charts.plots import (
    MOST_BESIDE,
    CurvePanel,
    confusion_matrix,
    precision_recall_curves,
)
from evaluation.report.inputs import Evidence
from evaluation.report.sections import Section, Table
from evaluation.tables import percent

MAX_CONFUSIONS = 12


def by_recall(comparison: Comparison, evidence: Evidence) -> list[Section]:
    """Precision-recall curves of chosen interactions; none without detections."""
    if not evidence.views:
        return []
    vocabulary = comparison.vocabulary
    names = [vocabulary.interaction_name(index) for index in range(vocabulary.num_interactions)]
    lead = evidence.views[0]
    counts = lead.judged.positives(vocabulary.num_interactions)
    average_precision = [lead.result.per_class.get(name) for name in names]
    panels = [
        CurvePanel(
            names[index],
            place,
            index in comparison.unseen,
            int(counts[index]),
            tuple(
                (
                    view.contestant,
                    precision_recall(view.judged, index, int(counts[index])),
                    view.result.per_class.get(names[index]),
                )
                for view in evidence.views
            ),
        )
        for index, place in choose_interactions(average_precision, counts, comparison.unseen)
        if counts[index]
    ]
    if not panels:
        return []
    note = (
        f"Chosen by the AP of {lead.contestant.title.lower()} among interactions with at least five"
        " labelled instances, where there are enough."
    )
    return [Section("curves", "Precision and recall", note, (precision_recall_curves(panels),))]


def by_error(comparison: Comparison, evidence: Evidence) -> list[Section]:
    """Kinds of errors of each contestant; none without detections."""
    if not evidence.views:
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
    for view in evidence.views:
        kinds = error_kinds(view.judged, vocabulary)
        for counted, which in (
            (best_scoring(view.judged, vocabulary), "best-scoring"),
            (np.ones(len(kinds), dtype=bool), "all"),
        ):
            for group, members in groups.items():
                found = count_errors(view.judged, kinds, counted, members)
                if which == "best-scoring":
                    rows.append(ErrorRow(view.contestant.title, group, found))
                numbers = (f"{found.right:,}", f"{found.wrong:,}", *map(percent, found.shares))
                table.append((view.contestant.title, group, which, *numbers))
    if not any(row.counts.wrong for row in rows):
        return []
    rows.sort(key=lambda row: list(groups).index(row.group))
    note = (
        "What is wrong with wrong detections. Detections with scores near zero cost nothing, so of"
        " every interaction only as many best-scoring detections count as it has labelled"
        " instances."
    )
    head = ("", "interactions", "detections", "right", "wrong", *(TITLES[k] for k in ERROR_KINDS))
    return [
        Section(
            "errors",
            "Kinds of errors",
            note,
            (error_bars(rows),),
            {TITLES[name]: text for name, text in DEFINITIONS.items()},
            (Table("Errors: shares by kind in % of the wrong detections", head, tuple(table)),),
        )
    ]


def by_confusion(comparison: Comparison, evidence: Evidence) -> list[Section]:
    """Confusion among verbs of the first contestants; none without detections."""
    vocabulary = comparison.vocabulary
    verbs = [verb.replace("_", " ") for verb in vocabulary.verbs]
    unseen = comparison.unseen_verbs
    charts, rows = [], []
    for place, view in enumerate(evidence.shown):
        confusion = verb_confusion(view.judged, vocabulary)
        if not confusion.found:
            continue
        title = view.contestant.title
        charts.append(confusion_matrix(confusion, verbs, unseen, title, f"confusion-{place + 1}"))
        for labelled, said, pairs in confusion.worst(MAX_CONFUSIONS):
            rows.append((title, verbs[labelled], verbs[said], f"{pairs:g}"))
    if not charts:
        return []
    note = (
        "Labelled pairs that were found (right object, both boxes overlapping by half), by"
        " labelled verb, and the verb of the best-scoring detection that found them, in % of the"
        " row. A right verb stands in its own row; a wrong one is shared among the pair's labels."
    )
    head = ("", "labelled", "said", "pairs")
    table = Table("Most frequent confusions", head, tuple(rows))
    return [
        Section(
            "confusion",
            "Confusion among verbs",
            note,
            tuple(charts),
            tables=(table,) if rows else (),
            beside=vocabulary.num_verbs <= MOST_BESIDE,
        )
    ]
