import numpy as np
import pytest

from teacher_cache.analysis.evaluate import TeacherScores, VerbScores
from teacher_cache.analysis.figures import draw_overview, draw_teacher_scores

pytest.importorskip("matplotlib.figure", reason="the extra report is not installed")
pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize(
    ("num_objects", "num_verbs", "max_pairs"), [(0, 0, 0), (2, 3, 5), (80, 117, 210)]
)
def test_the_figure_of_the_overview(tmp_path, num_objects, num_verbs, max_pairs):
    file = tmp_path / "c.png"
    verbs = {f"verb {number}": num_verbs - number for number in range(num_verbs)}
    distribution = {"pairs": num_objects, "histogram": [num_objects] + [0] * 19}
    draw_overview(
        file,
        "cache",
        {
            "pairs_per_image": {"images_by_pairs": [1] * (max_pairs + 1)},
            "repeated_unions": 0.5 if num_objects else None,
            "confidence": {"annotated": distribution, "proposed": distribution},
            "entropy": {"annotated": distribution, "proposed": distribution},
            "no_interaction": {"confidence": distribution},
            "top_actions": {f"object {number}": verbs for number in range(num_objects)},
        },
    )
    assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("num_verbs", [2, 117])
def test_legends_do_not_cover_titles(tmp_path, monkeypatch, num_verbs):
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    figures, save = [], Figure.savefig

    def record(figure, *args, **options):
        figures.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", record)
    verbs = [VerbScores("jump", True, 12, 0.5, 0.25, 0.75, 0.125)] * num_verbs
    draw_teacher_scores(tmp_path / "t.png", TeacherScores("t", [("Full", 0.5, 0.25)], {}, verbs))
    texts = [text for axis in figures[0].axes for text in axis.findobj(Text) if text.get_text()]
    titles = [text.get_window_extent() for text in texts if text.get_weight() == "bold"]
    legends = [axis.get_legend() for axis in figures[0].axes if axis.get_legend()]
    assert len(titles) == len(legends) == 2
    assert all(legend.get_window_extent().count_overlaps(titles) == 0 for legend in legends)


@pytest.mark.parametrize("num_verbs", [0, 2, 117])
def test_the_figure_of_scores(tmp_path, num_verbs):
    rows = [("sit on", False, 12, 0.5, 0.25, 0.75, 0.125), ("jump", True, 0, *[np.nan] * 4)]
    verbs = [VerbScores(*rows[number % 2]) for number in range(num_verbs)]
    groups = [("Full", 0.5, 0.25), ("Seen", 0.4, None)]
    draw_teacher_scores(tmp_path / "t.png", TeacherScores("t", groups, {}, verbs))
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")
