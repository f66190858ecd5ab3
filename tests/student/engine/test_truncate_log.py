import json

import pytest

from student.engine.metrics_log import truncate_log


def lines(*steps):
    return "".join(json.dumps({"step": step, "loss": 1 / step}) + "\n" for step in steps)


def test_no_log_stays_none(tmp_path):
    truncate_log(tmp_path / "metrics.jsonl", 10)
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("before", "step", "after"),
    [
        ("", 5, ""),
        (lines(10, 20, 30), 30, lines(10, 20, 30)),
        (lines(10, 20, 30), 25, lines(10, 20)),
        (lines(10, 20, 30), 0, ""),
        (lines(10) + '{"step": 20, "lo', 25, lines(10)),
        (lines(10) + "\0\0\0\0", 25, lines(10)),
        (lines(10) + "[]\n{}\nnull\n" + '{"step": "x"}\n', 25, lines(10)),
    ],
)
def test_what_came_after_the_checkpoint_goes(tmp_path, before, step, after):
    path = tmp_path / "metrics.jsonl"
    path.write_text(before)
    truncate_log(path, step)
    assert path.read_text() == after


def test_a_log_without_anything_to_drop_is_not_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines(10, 20))
    written = path.stat().st_mtime_ns, path.stat().st_ino
    truncate_log(path, 20)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == written
