"""The finding in words, with the run's own numbers."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.comparison import Comparison
from evaluation.contestants import Role
from evaluation.hico import Setting
from evaluation.results import Results, SettingScores
from evaluation.vcoco_results import AGENT_AP, ROLE_AP, ROLE_AP_WITHOUT_POINT

METRIC_TITLES = {
    "full": "Full",
    "seen": "Seen",
    "unseen": "Unseen",
    "harmonic_mean": "Harmonic mean",
    "rare": "Rare",
    "non_rare": "Non-rare",
    "mean_max_recall": "Max recall",
}
VCOCO_TITLES = {
    ROLE_AP[0]: "Role AP, scenario 1",
    ROLE_AP[1]: "Role AP, scenario 2",
    ROLE_AP_WITHOUT_POINT[0]: "Without point, scenario 1",
    ROLE_AP_WITHOUT_POINT[1]: "Without point, scenario 2",
    AGENT_AP: "Agent AP",
}
SETTINGS = {"default": "default setting", "known_object": "known-object setting"}


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as the field prints it: 0.701 is 70.1."""
    return "-" if value is None else f"{100 * value:.{digits}f}"


def listing(names: Sequence[str]) -> str:
    """The names as "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def columns(results: Sequence[Results]) -> list[tuple[Setting, Results | SettingScores]]:
    """The settings of all results, one after the other, with their numbers."""
    found: list[tuple[Setting, Results | SettingScores]] = []
    for result in results:
        found.append((result.setting, result))
        if result.known_object is not None:
            found.append(("known_object", result.known_object))
    return found


def results_table(results: Sequence[Results]) -> list[str]:
    """Lines for a terminal: a row for each metric, a column for each result (a setting, a run).

    Args:
        results: of one dataset and split.
    """
    first, shown = results[0], columns(results)
    settings = [SETTINGS[setting] for setting, _ in shown]
    width = max(12, *(len(setting) + 2 for setting in settings))
    classes = f"{len(first.per_class)} interactions"
    nms = ", after pairwise NMS" if first.nms else ""
    lines = [
        f"{first.dataset}, split {first.split}: {first.num_images} images, {classes}{nms}",
        f"{'mAP':<15}" + "".join(f"{setting:>{width}}" for setting in settings),
    ]
    for name, title in METRIC_TITLES.items():
        values = [scores.metrics.get(name) for _, scores in shown]
        if any(value is not None for value in values):
            numbers = "".join(f"{percent(value, 2):>{width}}" for value in values)
            lines.append(f"{title.lower():<15}" + numbers)
    return lines


def headline(comparison: Comparison) -> tuple[str, str]:
    """The finding: one sentence with this run's numbers, and a few more beside it."""
    if comparison.by_vcoco:
        return _vcoco_headline(comparison)
    metric = "unseen" if comparison.unseen else "full"
    scored = {
        one.role: value
        for one in comparison.contestants
        if (value := one.metric(metric)) is not None
    }
    if metric == "full" or "distilled" not in scored:
        numbers = ", ".join(
            f"{one.title} {percent(one.metric(metric))}" for one in comparison.contestants
        )
        return f"{metric.capitalize()} mAP: {numbers}.", ""
    distilled, control = scored["distilled"], scored.get("control")
    found = f"{percent(distilled)} mAP on {_held_back(comparison)} without one label for them"
    if control is None:
        return f"{found}.", "A run without distillation belongs beside this number; none is here."
    verdict = ": here the answers did not help" if distilled <= control else ""
    first = f"{found}; {percent(control)} when the teacher's answers are left out{verdict}."
    return first, " ".join(_beside(comparison, scored))


def _vcoco_headline(comparison: Comparison) -> tuple[str, str]:
    """The averages of the first contestant that has them, and what the others' role AP is."""
    scored = [one for one in comparison.contestants if one.vcoco_metric(ROLE_AP[0]) is not None]
    lead, *others = scored
    first, second, agent = (percent(lead.vcoco_metric(name)) for name in (*ROLE_AP, AGENT_AP))
    told = [f"{one.title} {percent(one.vcoco_metric(ROLE_AP[0]))}" for one in others]
    beside = f" Role AP of the others in scenario 1: {listing(told)}." if told else ""
    found = f"Role AP {first} in scenario 1 and {second} in scenario 2: {lead.title}."
    return found, f"Agent AP {agent}.{beside}"


def _held_back(comparison: Comparison) -> str:
    vocabulary = comparison.vocabulary
    verbs = [vocabulary.verbs[verb].replace("_", " ") for verb in comparison.unseen_verbs]
    if 0 < len(verbs) <= 4:
        return listing(verbs)
    if verbs:
        return f"{len(verbs)} unseen actions"
    return f"{len(comparison.unseen)} unseen interactions"


def _beside(comparison: Comparison, scored: dict[Role, float]) -> list[str]:
    sentences = []
    share = comparison.share_closed()
    if "all_labels" in scored:
        ceiling = (
            f"Trained with every label, the same student reaches {percent(scored['all_labels'])}"
        )
        closed = "" if share is None else f": distillation closes {100 * share:.0f} % of the gap"
        sentences.append(f"{ceiling}{closed}.")
    pair = [comparison.find(role) for role in ("distilled", "control")]
    seen = [percent(one.metric("seen")) for one in pair if one is not None]
    sentences.append(f"On seen interactions it stands at {seen[0]} against {seen[1]}.")
    if "teacher" in scored:
        verdict = "beats" if scored["distilled"] > scored["teacher"] else "stays below"
        sentences.append(f"It {verdict} its teacher, which has {percent(scored['teacher'])}.")
    return sentences
