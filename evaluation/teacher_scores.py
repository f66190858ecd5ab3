"""What a teacher's own evaluation found, as a table for a terminal."""

from __future__ import annotations

from dataclasses import dataclass

from evaluation.wording import METRIC_TITLES, percent

ACTIONS = "actions"
# In the order of the table; `actions` leaves `no_interaction` out, which no teacher is asked.
GROUPS = {**METRIC_TITLES, ACTIONS: "Full, actions only"}


@dataclass(frozen=True)
class VerbScores:
    """One verb; fractions, None where there is nothing to measure.

    Attributes:
        name: for people.
        unseen: all its interactions are unseen.
        num_pairs: annotated pairs with this label.
        accuracy: share of them for which the teacher's best action is one of their labels.
        recall: share of them that the detector proposes.
        annotated, proposed: mAP over its interactions, on either kind of pairs.
    """

    name: str
    unseen: bool
    num_pairs: int
    accuracy: float | None
    recall: float | None
    annotated: float | None
    proposed: float | None


@dataclass(frozen=True)
class TeacherScores:
    """A teacher's evaluation.

    Attributes:
        title: dataset, split and numbers of images and pairs.
        annotated, proposed: mAP by group, of `GROUPS`, on either kind of pairs; None for a group
            without ground truth.
        shares: further fractions by their title.
        verbs: every verb that the teacher is asked for.
    """

    title: str
    annotated: dict[str, float | None]
    proposed: dict[str, float | None]
    shares: dict[str, float | None]
    verbs: tuple[VerbScores, ...]

    def groups(self) -> list[tuple[str, float | None, float | None]]:
        """Title and mAP on annotated and proposed pairs of every group that has any."""
        rows = [
            (title, self.annotated.get(name), self.proposed.get(name))
            for name, title in GROUPS.items()
        ]
        return [row for row in rows if row[1] is not None or row[2] is not None]


def teacher_table(scores: TeacherScores) -> list[str]:
    """Lines for a terminal; percent."""
    lines = [scores.title, "", f"{'mAP':<24}{'annotated pairs':>17}{'proposed pairs':>17}"]
    lines += [
        f"{title:<24}{percent(annotated):>17}{percent(proposed):>17}"
        for title, annotated, proposed in scores.groups()
    ]
    lines.append("")
    lines += [f"{title:<41}{percent(share):>17}" for title, share in scores.shares.items()]
    width = max([10, *(len(verb.name) + 2 for verb in scores.verbs)])
    heads = ("pairs", "top-1", "recall", "mAP annot.", "mAP prop.")
    lines += ["", f"{'verb (* unseen)':<{width + 6}}" + "".join(f"{head:>12}" for head in heads)]
    for verb in scores.verbs:
        cells = (verb.accuracy, verb.recall, verb.annotated, verb.proposed)
        name = verb.name + (" *" if verb.unseen else "")
        lines.append(
            f"{name:<{width + 6}}{verb.num_pairs:>12}"
            + "".join(f"{percent(cell):>12}" for cell in cells)
        )
    return lines
