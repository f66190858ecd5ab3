"""The state of finished, unfinished and damaged caches; running builds are in `cluster/`."""

import errno
import json
import os
import re
import shutil
import time
from datetime import datetime, timezone
from functools import partial
from types import SimpleNamespace

import msgspec
import pytest
from commands import run_command

from pipeline.cluster.activity import Activity, announce
from pipeline.cluster.lock import LOCK
from teacher_cache.analysis import status as status_module
from teacher_cache.analysis.status import CacheState, StatusReader, format_status
from teacher_cache.cli import main
from teacher_cache.reader.format import MANIFEST, PLAN, SHARDS, TEACHER

run = partial(run_command, main, "eoid-cache")
SHARD = f"{SHARDS}/00001.h5"
RECORD = Activity(host="elsewhere", pid=7, since=datetime.now(timezone.utc), machine="another")


def state_of(folder):
    return StatusReader(folder).read()


@pytest.fixture
def unfinished(copy):
    """A cache whose build was killed after the first of three shards."""
    for name in (MANIFEST, SHARD, f"{SHARDS}/00002.h5"):
        (copy / name).unlink()
    return copy


@pytest.fixture
def replace_sleep(monkeypatch):
    """`replace_sleep(function)` replaces what `status --watch` calls between two tables."""
    # Not `time.sleep` itself, which threads of other tests may call.
    return lambda function: monkeypatch.setattr(
        status_module, "time", SimpleNamespace(sleep=function)
    )


def table_of(folder):
    """The rows of the table by their names."""
    lines = format_status(state_of(folder))
    # The first line has the folder as it was given.
    assert all(len(line) <= 80 or " " not in line.strip() for line in lines[1:]), lines
    rows, name = {}, ""
    for line in lines[1:]:
        name = line[2:14].strip() or name
        rows[name] = f"{rows.get(name, '')} {line[14:].strip()}".strip()
    return rows


def test_a_finished_cache(finished):
    done = run("status", finished)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"{finished}: finished"
    assert "shards      3 of 3 (100.0 %)" in lines[1] and "images      7 of 7" in lines[2]
    assert not any(line.strip().startswith(("running", "time left", "failed")) for line in lines)
    state = state_of(finished)
    size = sum(path.stat().st_size for path in finished.rglob("*.*"))
    assert state.bytes == state.bytes_expected and abs(state.bytes - size) < 1000
    assert abs(state.disk_free - shutil.disk_usage(finished).free) < 10**9


def test_an_unfinished_cache(unfinished):
    done = run("status", unfinished)
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout.startswith(f"{unfinished}: unfinished\n")
    rows = table_of(unfinished)
    assert rows["shards"] == "1 of 3 (33.3 %)" and rows["images"] == "3 of 7 (42.9 %)"
    assert "no process" in rows["running"] and "time left" not in rows and "rate" not in rows
    state = state_of(unfinished)
    assert state.bytes < state.bytes_expected and re.match(r"\S+ kB of \S+ kB, ", rows["disk"])


def test_all_shards_without_a_manifest(copy):
    (copy / MANIFEST).unlink()
    assert state_of(copy).state == "unfinished"
    assert "eoid-cache verify" in table_of(copy)["running"]
    assert run("verify", copy).returncode == 0
    assert run("status", copy).returncode == 0


def test_the_schema_of_the_json(unfinished, finished):
    for folder, code in ((unfinished, 3), (finished, 0)):
        done = run("status", folder, "--json")
        assert (done.returncode, done.stderr) == (code, "")
        state = msgspec.json.decode(done.stdout.encode(), type=CacheState)
        assert set(json.loads(done.stdout)) == set(CacheState.__struct_fields__)
        state_now = state_of(folder)
        assert msgspec.structs.replace(state, disk_free=0) == msgspec.structs.replace(
            state_now, disk_free=0
        )
    with announce(unfinished, "one process"):
        value = json.loads(run("status", unfinished, "--json").stdout)
    (running,) = value["running"]
    assert running["pid"] == os.getpid() and running["work"] == "one process"
    assert datetime.fromisoformat(running["since"]).tzinfo is not None


def test_failed_images_with_reasons(dataset, build, build_config):
    for number in (1, 2, 5):
        (dataset / f"images/train2015/toy_train_0000000{number}.jpg").unlink()
    (dataset / "images/train2015/toy_train_00000004.jpg").write_bytes(b"\xff\xd8\xff")
    out = build(dataset).path
    for name in (None, MANIFEST):
        if name is not None:
            (out / name).unlink()
        state = state_of(out)
        assert state.images.done == 7 and len(state.failed) == 4
        assert state.failed["toy_train_00000001.jpg"] == "no such image"
        assert table_of(out)["images"] == "7 of 7 (100.0 %), 4 could not be read"
        text = table_of(out)["failed"]
        assert text.startswith("3 images, first toy_train_00000001.jpg: no such image 1 image, f")


def damage(path, position=-9):
    content = bytearray(path.read_bytes())
    content[position] ^= 255
    path.write_bytes(content)


@pytest.mark.parametrize("is_finished", [True, False])
@pytest.mark.parametrize(
    ("name", "change"),
    [
        (SHARD, lambda path: path.write_bytes(path.read_bytes()[:3000])),
        (SHARD, lambda path: path.write_bytes(b"")),
        (SHARD, lambda path: damage(path, 0)),
        (TEACHER, lambda path: path.write_bytes(b"")),
        (TEACHER, os.unlink),
        (PLAN, damage),
        (PLAN, lambda path: path.write_text("{")),
    ],
)
def test_damaged_files(copy, name, change, is_finished):
    if not is_finished:
        (copy / MANIFEST).unlink()
    change(copy / name)
    done = run("status", copy)
    assert done.returncode == 2 and done.stdout.startswith(f"{copy}: broken\n"), done
    assert len(done.stderr.splitlines()) == 1 and f"{copy / name}: " in done.stderr
    assert name in table_of(copy)["damaged"]
    assert run("verify", copy).returncode == 2


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (SHARD, os.unlink),
        (SHARD, lambda path: shutil.copy(path.with_name("00000.h5"), path)),
        (SHARD, lambda path: path.write_bytes(path.read_bytes() + b"more")),
        (PLAN, os.unlink),
        (TEACHER, damage),
        (MANIFEST, damage),
        (MANIFEST, lambda path: path.write_text("")),
        (MANIFEST, lambda path: path.write_text("{}")),
    ],
)
def test_damage_of_a_finished_cache(copy, name, change):
    change(copy / name)
    done = run("status", copy, "--json")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done
    value = json.loads(done.stdout)
    assert value["state"] == "broken" and list(value["problems"]) == [name]
    assert f"{copy / name}: " in done.stderr


@pytest.mark.parametrize(
    ("function", "name"), [("sha256_of_file", TEACHER), ("read_layout", SHARD), ("read_plan", PLAN)]
)
def test_files_that_the_file_system_cannot_read(copy, monkeypatch, function, name):
    read = getattr(status_module, function)

    def fail(path, *arguments):
        if str(path).endswith(name) or function == "read_plan":
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return read(path, *arguments)

    monkeypatch.setattr(status_module, function, fail)
    state = state_of(copy)
    assert state.problems == {name: "cannot be read (Stale file handle)"}
    assert state.state == "broken"


def test_both_descriptions_damaged(copy):
    for name in (MANIFEST, PLAN):
        damage(copy / name)
    done = run("status", copy)
    assert done.returncode == 2 and "(2 problems)" in done.stderr
    assert state_of(copy).images.total is None


def test_any_byte_of_the_small_files(copy):
    """A flipped byte is found, and nothing else fails."""
    for name in (MANIFEST, PLAN):
        content = (copy / name).read_bytes()
        for position in range(0, len(content), 97):
            damage(copy / name, position)
            state = state_of(copy)
            assert state.state == "broken" and set(state.problems) == {name}
            (copy / name).write_bytes(content)
    assert state_of(copy).state == "finished"


def test_damage_that_only_verify_finds(copy):
    damage(copy / SHARD)
    assert run("status", copy).returncode == 0
    assert run("verify", copy).returncode == 2


@pytest.mark.parametrize(
    ("prepare", "text"),
    [
        (lambda path: None, "expected a cache folder, found none"),
        (lambda path: path.touch(), "expected a cache folder, found a file"),
        (lambda path: (path / "photos").mkdir(parents=True), "build.json or manifest.json"),
    ],
)
def test_no_cache(tmp_path, prepare, text):
    prepare(tmp_path / "cache")
    done = run("status", tmp_path / "cache")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1 and text in done.stderr
    assert f"{tmp_path / 'cache'}: " in done.stderr


def test_a_folder_that_is_being_made(unfinished):
    """What a build leaves at each of its first steps."""
    shards = [path.name for path in (unfinished / SHARDS).iterdir()]
    for name in shards:
        (unfinished / SHARDS / name).unlink()
    (unfinished / SHARDS / ".00000.h5.12ab.tmp").write_bytes(b"\x89HDF")
    assert state_of(unfinished).images.done == 0
    for name in (f"{SHARDS}/.00000.h5.12ab.tmp", TEACHER, PLAN, SHARDS, LOCK):
        path = unfinished / name
        path.rmdir() if path.is_dir() else path.unlink()
        if name == PLAN:
            (unfinished / ".build.json.12ab.tmp").write_text("{")
        state = state_of(unfinished)
        assert (state.state, state.problems) == ("unfinished", {}), name
        if name == PLAN:
            assert state.shards.total is state.images.total is None
            (unfinished / ".build.json.12ab.tmp").unlink()
    assert list(unfinished.iterdir()) == []
    assert run("status", unfinished).returncode == 3


def test_temporary_files_are_no_shards(unfinished):
    before = state_of(unfinished)
    shutil.copy(unfinished / f"{SHARDS}/00000.h5", unfinished / SHARDS / ".00001.h5.12ab.tmp")
    (unfinished / ".manifest.json.12ab.tmp").write_text('{"half')
    after = state_of(unfinished)
    assert (after.shards, after.images, after.state) == (before.shards, before.images, "unfinished")


def put_record(folder, name="12ab", **changes):
    record = msgspec.structs.replace(RECORD, **changes)
    (folder / f".running.{name}").write_bytes(msgspec.json.encode(record))


def test_the_record_of_a_killed_job_harms_nothing(copy):
    put_record(copy, machine="")
    modified = time.time() - 1000
    os.utime(copy / ".running.12ab", (modified, modified))
    assert (state_of(copy).state, state_of(copy).running) == ("finished", [])
    assert run("verify", copy).returncode == 0


def put_shards(folder, now, ages):
    """Shards of three, three and one images that were finished so many seconds ago."""
    (folder / MANIFEST).unlink(missing_ok=True)
    for number, age in enumerate(ages):
        os.utime(folder / SHARDS / f"0000{number}.h5", (now - age, now - age))


def ago(now, seconds):
    return datetime.fromtimestamp(now - seconds, timezone.utc)


def test_the_rate_before_the_second_shard_of_a_process(unfinished):
    """That of the images that the processes have made of their present shards."""
    now = time.time()
    put_record(unfinished, since=ago(now, 100))
    assert state_of(unfinished).images_per_second is None
    put_shards(unfinished, now, [30])
    assert state_of(unfinished).images_per_second is None
    put_record(unfinished, "34cd", pid=8, done=2, total=3, since=ago(now, 20), seconds=20)
    # The clock of the second machine is ten minutes ahead.
    put_record(unfinished, "56ef", pid=9, done=1, total=3, since=ago(now, -560), seconds=40)
    state = state_of(unfinished)
    assert state.images_per_second == pytest.approx(2 / 20 + 1 / 40)
    # Of seven images, three are finished; of two records that say the same shard, one counts.
    assert state.seconds_left == pytest.approx(2 / state.images_per_second)
    rows = table_of(unfinished)
    assert rows["rate"] == f"{state_of(unfinished).images_per_second:.3g} images per second"
    assert rows["time left"].endswith(" s") and re.match(r"20.* \(3\d s ago\)", rows["last shard"])
    # So is the file server's.
    put_shards(unfinished, now, [-600])
    assert table_of(unfinished)["last shard"].endswith(" (0 s ago)")


def test_the_rate_from_the_times_of_shards(copy, monkeypatch):
    now = time.time()
    put_shards(copy, now, [100, 80, 60])
    put_record(copy, since=ago(now, 10000))
    # Three images and one, in the 40 seconds after the first shard.
    assert state_of(copy).images_per_second == pytest.approx(4 / 40)
    # Shards of an earlier run say nothing about this one.
    put_record(copy, since=ago(now, 90))
    assert state_of(copy).images_per_second == pytest.approx(1 / 20)
    put_record(copy, since=ago(now, 10000))
    monkeypatch.setattr(status_module, "RATE_SHARDS", 1)
    assert state_of(copy).images_per_second == pytest.approx(1 / 20)
    # The first shards of two processes that began at the same time end at the same time.
    monkeypatch.undo()
    for name in ("34cd", "56ef"):
        put_record(copy, name, pid=int(name[:2]), total=3, since=ago(now, 1))
    assert state_of(copy).images_per_second == pytest.approx(1 / 20)


def test_who_runs(unfinished):
    for number in range(3):
        work = f"job {number}/3 of an array"
        put_record(unfinished, f"a{number}", pid=10 + number, work=work, job=f"80_{number}")
    put_record(unfinished, "b0", pid=10, work=f"{SHARDS}/00001.h5", done=1, total=3, job="80_0")
    rows = table_of(unfinished)
    assert "elsewhere (process 10, job 80_0) since 20" in rows["running"]
    for number in (11, 12):
        assert f"(process {number}, job 80_{number - 10})" in rows["running"]
    assert "0/3 of an array, shards/00001.h5, 1 of 3 images" in rows["running"]
    assert len(state_of(unfinished).running) == 4
    for number in range(30):
        put_record(unfinished, f"c{number}", pid=100 + number)
    assert rows["running"] != table_of(unfinished)["running"]
    assert "and 21 more" in table_of(unfinished)["running"]


def test_watching_until_the_end(unfinished, finished, monkeypatch, replace_sleep):
    """Each table is read anew; shards that were read before are not opened again."""
    opened = []
    read_layout = status_module.read_layout
    monkeypatch.setattr(
        status_module,
        "read_layout",
        lambda path, *_: opened.append(path.name) or read_layout(path, *_),
    )
    files = iter((SHARD, f"{SHARDS}/00002.h5", MANIFEST))

    def wait(seconds):
        assert seconds == status_module.WATCH_INTERVAL
        name = next(files)
        shutil.copy(finished / name, unfinished / name)

    replace_sleep(wait)
    for words in ((), ("--json",)):
        if words:
            for name in (MANIFEST, SHARD):
                (unfinished / name).unlink()
            files = iter((SHARD, MANIFEST))
        done = run("status", unfinished, "--watch", *words)
        assert (done.returncode, done.stderr) == (0, "")
        if words:
            states = [json.loads(line)["state"] for line in done.stdout.splitlines()]
            assert states == ["unfinished", "unfinished", "finished"]
        else:
            tables = done.stdout.split("\n\n")
            assert [re.search(r"shards +(\d)", table)[1] for table in tables] == list("1233")
            assert opened == ["00000.h5", "00001.h5", "00002.h5"]


def test_watching_waits_for_a_folder(finished, tmp_path, replace_sleep):
    cache = tmp_path / "cache"
    replace_sleep(lambda seconds: shutil.copytree(finished, cache))
    done = run("status", cache, "--watch")
    assert done.returncode == 0 and done.stdout.startswith(f"{cache}: finished\n")
    assert done.stderr == f"{cache}: waiting for a build to make this folder\n"
    (tmp_path / "file").touch()
    assert run("status", tmp_path / "file", "--watch").returncode == 2


def test_watching_ends_with_damage_and_with_ctrl_c(unfinished, replace_sleep):
    def interrupt(seconds):
        raise KeyboardInterrupt

    replace_sleep(interrupt)
    done = run("status", unfinished, "--watch")
    assert (done.returncode, done.stderr) == (130, "")
    assert done.stdout.startswith(f"{unfinished}: unfinished\n")
    replace_sleep(lambda seconds: (unfinished / TEACHER).unlink())
    done = run("status", unfinished, "--watch")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and TEACHER in done.stderr


def test_a_table_on_a_terminal_replaces_the_last_one(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((10, 4)))
    height = status_module._print_table(["a line that is long", "two", "three", "four"], True, 0)
    assert height == 3 and capsys.readouterr().out == "a line tha\ntwo\nthree\n"
    assert status_module._print_table(["now"], True, height) == 1
    assert capsys.readouterr().out == "\033[3F\033[Jnow\n"
    assert status_module._print_table(["a line that is long"], False, 0) == 1
    assert capsys.readouterr().out == "a line that is long\n"
