import pytest

from teacher_cache.analysis.summary import (
    TeacherScores,
    VerbScores,
    draw_teacher_scores,
    format_teacher_scores,
)

VERBS = (
    VerbScores("sit on", False, 12, 0.5, 0.25, 0.75, 0.125),
    VerbScores("jump", True, 0, None, None, None, None),
)
SCORES = TeacherScores(
    title="toy, test part",
    annotated={"full": 0.5, "seen": 0.4, "rare": None, "actions": 0.7},
    proposed={"full": 0.25, "seen": None, "rare": None, "actions": 0.3},
    rates={"teacher accuracy": 0.75, "person recall": None},
    verbs=VERBS,
)


def test_groups_that_nothing_measures_are_left_out():
    assert SCORES.group_rows() == [
        ("Full", 0.5, 0.25),
        ("Seen", 0.4, None),
        ("Full, actions only", 0.7, 0.3),
    ]


def test_the_table_is_aligned():
    lines = format_teacher_scores(SCORES)
    assert lines[0] == "toy, test part"
    rows = {line[:24].strip(): line[24:].split() for line in lines}
    assert rows["Full"] == ["50.0", "25.0"] and rows["Seen"] == ["40.0", "-"]
    start = next(place for place, line in enumerate(lines) if line.startswith("verb"))
    table = lines[start:]
    assert len({len(line) for line in table}) == 1
    assert table[1].split() == ["sit", "on", "12", "50.0", "25.0", "75.0", "12.5"]
    assert table[2].split() == ["jump", "*", "0", "-", "-", "-", "-"]


def test_nothing_proposed():
    scores = TeacherScores("t", {"full": 0.5}, {}, {}, ())
    assert scores.group_rows() == [("Full", 0.5, None)]
    assert any(line.split() == ["Full", "50.0", "-"] for line in format_teacher_scores(scores))


@pytest.mark.parametrize("num_verbs", [0, 2, 117])
@pytest.mark.filterwarnings("error")
def test_the_picture(tmp_path, num_verbs):
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    verbs = tuple(VERBS[place % 2] for place in range(num_verbs))
    file = tmp_path / "t.png"
    draw_teacher_scores(file, TeacherScores("t", SCORES.annotated, SCORES.proposed, {}, verbs))
    assert file.read_bytes().startswith(b"\x89PNG")
