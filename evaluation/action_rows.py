"""The results of every action: the rows of the report's bars."""

from __future__ import annotations

from dataclasses import dataclass, replace

from evaluation.comparison import Comparison


@dataclass(frozen=True)
class Action:
    """A row of the chart: a verb or an interaction, and its AP for each contestant."""

    name: str
    unseen: bool
    values: tuple[float | None, ...]

    def of(self, *places: int) -> Action:
        """The same row with some contestants only."""
        return replace(self, values=tuple(self.values[place] for place in places))


def action_rows(comparison: Comparison, limit: int) -> tuple[list[Action], str]:
    """Rows of the per-action chart, unseen ones first, each kind by the first contestant's AP.

    Verbs; where no verb is unseen as a whole, the unseen interactions stand before the verbs'
    seen part.

    Args:
        limit: how many rows at most; when there are more, the ones with most interactions stay.

    Returns:
        rows and what was left out, "" when nothing was.
    """
    vocabulary, unseen = comparison.vocabulary, set(comparison.unseen)
    verbs = set(comparison.unseen_verbs)
    groups: list[tuple[str, bool, list[int]]] = []
    if not verbs:
        groups += [(vocabulary.interaction_name(index), True, [index]) for index in sorted(unseen)]
    for verb, name in enumerate(vocabulary.verbs):
        own = [index for index, pair in enumerate(vocabulary.interactions) if pair[0] == verb]
        members = own if verb in verbs else [index for index in own if index not in unseen]
        groups.append((name.replace("_", " "), verb in verbs, members))
    rows = []
    for name, is_unseen, members in groups:
        names = [vocabulary.interaction_name(index) for index in members]
        values = tuple(one.mean_ap(names) for one in comparison.contestants)
        if any(value is not None for value in values):
            rows.append((len(members), Action(name, is_unseen, values)))
    kept = sorted(rows, key=lambda row: (not row[1].unseen, -row[0]))[:limit]
    left_out = (
        f"The {len(rows) - len(kept)} actions with fewest objects are left out."
        if len(rows) > len(kept)
        else ""
    )
    actions = [action for _, action in kept]
    actions.sort(key=lambda action: (not action.unseen, -(action.values[0] or 0.0)))
    return actions, left_out
