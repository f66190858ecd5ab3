import heapq
import math
import random

import pytest

from pipeline.cluster.tasks import ArrayShare, Postponed, TaskQueue
from pipeline.utils.errors import InputError
from pipeline.utils.progress import Progress


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_array_shares_partition_the_items(count):
    shares = [ArrayShare(index, count).select(range(7)) for index in range(count)]
    assert sorted(item for share in shares for item in share) == list(range(7))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


# The last number has more digits than Python converts.
@pytest.mark.parametrize(
    "text", ["", "3", "1/1", "-1/2", "0/0", "a/2", "1/2/3", "0.5/2", "0/" + 5000 * "9"]
)
def test_array_shares_are_i_of_n(text):
    assert ArrayShare.parse("3/8") == ArrayShare(3, 8)
    with pytest.raises(InputError, match="--array: expected I/N with I from 0 to N-1, found"):
        ArrayShare.parse(text)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ("ID=0 MIN=0 COUNT=1", ArrayShare(0, 1)),
        ("ID=2 MIN=0 COUNT=8 STEP=1", ArrayShare(2, 8)),
        ("ID=5 MIN=3 COUNT=4 STEP=1", ArrayShare(2, 4)),
        ("ID=14 MIN=10 COUNT=4 STEP=2", ArrayShare(2, 4)),
        ("", "--array: expected"),
        ("ID=1 MIN=0", "--array: expected"),
        ("ID=x MIN=0 COUNT=2", "--array: expected"),
        ("ID=7 MIN=1 COUNT=3 STEP=1", "found job 7 of 3 from 1 on"),
        ("ID=4 MIN=1 COUNT=3 STEP=2", "found job 4 of 3 from 1 on"),
    ],
)
def test_array_share_from_slurm(variables, expected):
    environment = dict(f"SLURM_ARRAY_TASK_{word}".split("=") for word in variables.split())
    if isinstance(expected, ArrayShare):
        assert ArrayShare.from_slurm(environment) == expected
    else:
        with pytest.raises(InputError, match=expected):
            ArrayShare.from_slurm(environment)


@pytest.mark.parametrize("count", [1, 3, 8, 500])
def test_jobs_start_one_after_the_other_within_half_a_minute(count):
    delays = [ArrayShare(index, count).start_delay() for index in range(count)]
    assert delays[0] == 0 and delays == sorted(delays) and delays[-1] <= 30
    assert count in (1, 500) or delays[1] == 1


class Record:
    def __init__(self, repeated=False):
        self.repeated = repeated


@pytest.fixture
def progress():
    with Progress(0, "tasks", quiet=True) as progress:
        yield progress


def drain(queue, progress, finished=None):
    """The numbers of all tasks, in the order in which the queue hands them out."""
    rows = []
    while (row := queue.pop(progress)) is not None:
        rows.append(row)
        queue.put(row, Record())
        if finished is not None:
            finished.add(queue.tasks[row])
    assert len(queue) == 0
    return rows


def test_a_command_does_missing_tasks_in_their_order(progress):
    queue = TaskQueue(list("abcdef"), {"b", "c"}.__contains__)
    assert (queue.pending, queue.finished) == (list("adef"), ["b", "c"])
    assert (queue.total, queue.done, len(queue)) == (6, 2, 4)
    assert drain(queue, progress) == [0, 3, 4, 5] and len(queue.records) == 4


def test_a_job_takes_over_what_other_jobs_left(progress):
    """Its own share first; then from the far end, at its own place of the list."""
    names = [f"{number:02}" for number in range(16)]
    finished = set()
    queue = TaskQueue(names, finished.__contains__, ArrayShare(0, 4))
    rows = drain(queue, progress, finished)
    assert rows[:4] == [0, 4, 8, 12] and sorted(rows) == list(range(16))
    firsts = []
    for index in range(4):
        finished = {name for name in names if int(name) % 4 != 3}
        queue = TaskQueue(names, finished.__contains__, ArrayShare(index, 4))
        firsts.append(queue.pop(progress))
    assert firsts == [15, 11, 7, 3]


def test_a_job_looks_for_every_shard_again(progress):
    finished, counted = set(), []
    names = [10 * name for name in "abcdef"]
    queue = TaskQueue(names, finished.__contains__, ArrayShare(1, 2))
    progress.update, progress.extend = counted.append, lambda count: counted.append(-count)
    assert queue.pop(progress) == 1
    finished.update(names[:4])
    assert queue.pop(progress) == 5 and sum(counted) == 10
    # Shard 4 is the only one that another job has not finished.
    assert queue.pop(progress) == 4 and counted[-1] == -10
    finished.add(names[4])
    assert queue.pop(progress) is None and len(queue) == 0


def test_a_job_with_a_folder_of_its_own_leaves_the_shards_of_others(progress):
    queue = TaskQueue(list("abcdef"), set().__contains__, ArrayShare(1, 3, True))
    assert drain(queue, progress) == [1, 4]


class Letter(str):
    name = property(str.__str__)


@pytest.mark.parametrize("share", [None, ArrayShare(1, 2)])
def test_postponed_tasks_come_last(share, progress):
    counted = []
    progress.update, progress.extend = counted.append, lambda count: counted.append(-count)
    queue = TaskQueue([Letter(name) for name in "abcd"], {"A"}.__contains__, share)
    rows = []
    while (row := queue.pop(progress)) is not None:
        rows.append(row)
        first = queue.tasks[row].islower() and row < 3
        if queue.put(row, Postponed(Letter(queue.tasks[row].upper())) if first else Record()):
            counted.append(1)
    # Another job has finished the first one meanwhile.
    assert rows == ([0, 1, 2, 3, 1, 2] if share is None else [1, 3, 0, 2, 1, 2])
    assert len(queue.records) == 3 and queue.tasks == list("ABCd")
    assert sum(counted) == (4 if share is None else 2)


def test_work_that_was_done_twice_is_told(progress, messages, tmp_path):
    queue = TaskQueue(list("abcd"), {"a"}.__contains__, ArrayShare(0, 2))
    for repeated in (False, False, True):
        queue.put(queue.pop(progress), Record(repeated))
    queue.report(tmp_path)
    assert "making 2 shards of other jobs" in messages[0]
    assert "made 3 shards, 2 of them of other jobs; 1 were" in messages[1]
    messages.clear()
    TaskQueue(["a"], bool).report(tmp_path)
    assert not messages


def simulate(num_shards, seconds, progress, costs=None):
    """Jobs of an array, by a clock that is not real: job I takes `seconds[I]` for a shard.

    Returns:
        The time at which no shard is missing; and how many shards were made more than once.
    """
    finished, repeated, now = set(), 0, 0.0
    queues = [
        TaskQueue(
            [str(number) for number in range(num_shards)],
            finished.__contains__,
            ArrayShare(index, len(seconds)),
        )
        for index in range(len(seconds))
    ]
    # Time, 1 for a job that looks for a shard and 0 for one that has made it, job, shard.
    events = [(0.0, 1, index, "") for index in range(len(seconds))]
    while len(finished) < num_shards:
        now, is_looking, index, shard = heapq.heappop(events)
        if not is_looking:
            repeated += shard in finished
            finished.add(shard)
            heapq.heappush(events, (now, 1, index, ""))
        elif (row := queues[index].pop(progress)) is not None:
            cost = 1 if costs is None else costs[row]
            heapq.heappush(events, (now + cost * seconds[index], 0, index, str(row)))
    return now, repeated


def best_time(num_shards, seconds):
    """The time after which jobs can have made so many shards, if they are distributed best."""
    return next(
        time
        for time in range(10 * num_shards)
        if sum(time // each for each in seconds) >= num_shards
    )


@pytest.mark.parametrize("slow", range(4))
def test_one_of_four_jobs_ten_times_slower_holds_nobody_up(slow, progress):
    seconds = [10 if index == slow else 1 for index in range(4)]
    for num_shards in range(4, 160):
        time, repeated = simulate(num_shards, seconds, progress)
        assert time <= best_time(num_shards, seconds) + 1
        assert repeated <= 8
    # Without taking over shards, the slow job alone would take ten seconds for each of its 39.
    assert time < 60


def test_a_job_that_never_ends_a_shard_holds_nobody_up(progress):
    time, _ = simulate(40, [1, math.inf, 1, 1], progress)
    assert time <= math.ceil(40 / 3) + 1


def test_shards_of_unequal_size(progress):
    """About one shard more than all jobs would take if shards could be divided."""
    excess = []
    for seed in range(100):
        rng = random.Random(seed)
        costs = [rng.uniform(0.7, 1.3) for _ in range(rng.randint(8, 150))]
        seconds = [10 if index == seed % 4 else 1 for index in range(4)]
        time, _ = simulate(len(costs), seconds, progress, costs)
        excess.append(time - sum(costs) / sum(1 / each for each in seconds))
    assert sum(excess) / len(excess) < 1.2 and max(excess) < 2.5
