"""The loop of a run: answers that do not depend on what else is answered, and files that a kill leaves usable."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny import random_model

from codegen2.eval.generators.base import ROWS, Answer, Decoding, Task, seed_of, show
from codegen2.eval.generators.own import OwnModel
from codegen2.eval.run import MOST_WAITING, Judging, answer_all, on_cores, share_cores
from codegen2.eval.scores import baseline, baseline_samples, differing, samples_of, scores_of, whole
from codegen2.eval.store import Folder, Journal

TASKS = [
    Task("t/0", "def f(x):\n    return ", group="t/0"),
    Task("t/1", "a = 1\nb = ", "\nc = 3\n", expected="2", group="t/1"),
    Task("t/2", "# é 漢\n", "d = 4\n", whole_lines=True, expected="e = 5\n", group="t/1"),
]
WARM = Decoding(max_new_tokens=6, temperature=0.9, seed=7)
ABOUT = {"model": {"name": "random"}, "settings": {"n": 20, "k": [1, 10]}}
N = ROWS + 4


@pytest.fixture(scope="module")
def own() -> OwnModel:
    return OwnModel(random_model())


def nobody(folder: Folder) -> Judging:
    """Judge nothing."""
    return Judging({}, folder, None, turns=False)


def run_into(path: Path, generator: Any, tasks: Sequence[Task] = TASKS, n: int = N) -> bytes:
    """Make or go on with a run; give its answers' lines, sorted."""
    with Folder(path, ABOUT) as folder:
        answer_all(tasks, n, WARM, generator, folder, nobody(folder))
    return sorted_lines(path / "samples.jsonl")


def sorted_lines(path: Path) -> bytes:
    return b"".join(sorted(path.read_bytes().splitlines(keepends=True)))


def test_an_answer_depends_on_the_seed_the_task_and_its_number_only(own: OwnModel, tmp_path: Path) -> None:
    every = run_into(tmp_path / "all", own)
    assert len({json.loads(line)["raw"] for line in every.splitlines()}) > 0.8 * N * len(TASKS)
    backwards = run_into(tmp_path / "backwards", own, TASKS[::-1])
    assert backwards == every
    alone = run_into(tmp_path / "alone", own, TASKS[1:2])
    assert alone == b"".join(x for x in every.splitlines(keepends=True) if b'"t/1"' in x)
    fewer = run_into(tmp_path / "fewer", own, TASKS, 3)
    assert set(fewer.splitlines()) < set(every.splitlines())
    other = [own.answer(TASKS[0], range(3), Decoding(6, 0.9, seed=8))[i].raw for i in range(3)]
    assert other != [json.loads(x)["raw"] for x in every.splitlines()[:3]]


def test_a_part_of_a_batch_is_that_of_the_whole_batch(own: OwnModel) -> None:
    whole_batch = own.answer(TASKS[1], range(ROWS), WARM)
    part = own.answer(TASKS[1], range(3, 6), WARM)
    assert [a.raw for a in part] == [a.raw for a in whole_batch[3:6]]


def test_seeds_differ() -> None:
    seeds = {seed_of(s, t, i) for s in range(3) for t in ("a", "b", "a\0b") for i in range(5)}
    assert len(seeds) == 45


class Seeded:
    """A generator without a model: an answer is the seed that a model would draw it by."""

    def describe(self) -> dict[str, Any]:
        return {"name": "seeded"}

    def answer(self, task: Task, numbers: range, how: Decoding) -> list[Answer]:
        seeds = [str(seed_of(how.seed, task.task_id, i)) for i in numbers]
        return [Answer(text, text, 0, "stop", 1, 0.25) for text in seeds]


MANY = [Task(f"m/{i}", f"x{i} = [", "]\n" if i % 2 else None) for i in range(60)]
_KILLS = """\
import json, os, random, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from test_eval_run import MANY, Seeded, run_into
from codegen2.eval.store import Journal
path, rng = Path(sys.argv[3]), random.Random(3)
def add(self, record):
    global left
    left -= 1
    if left == 0:  # as if the kill had come before, in the middle of, or behind a write
        line = json.dumps(record).encode() + b"\\n"
        self._file.write(line[:rng.choice((0, len(line) // 2, len(line) - 1, len(line)))])
        self._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, record)
real, Journal.add = Journal.add, add
for kill in range(int(sys.argv[4])):
    left, rng = rng.randint(1, 16), random.Random(kill)
    if not (child := os.fork()):
        run_into(path, Seeded(), MANY, 3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    print((path / "samples.jsonl").stat().st_size)
"""


@pytest.mark.parametrize("kills", [6, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_again_and_again_the_finished_file_is_that_of_a_run_that_was_not(
    kills: int, tmp_path: Path
) -> None:
    expected = run_into(tmp_path / "whole", Seeded(), MANY, 3)
    path, here = tmp_path / "killed", Path(__file__).parent
    command = [sys.executable, "-c", _KILLS, str(here), str(here.parent), str(path), str(kills)]
    killed = subprocess.run(command, check=True, capture_output=True)
    sizes = [int(x) for x in killed.stdout.split()]
    assert len(sizes) == kills and len(set(sizes)) > kills // 2 and max(sizes) < len(expected), sizes
    assert run_into(path, Seeded(), MANY, 3) == expected
    timings = [json.loads(x) for x in (path / "timings.jsonl").read_text().splitlines()]
    assert all(t["latency_s"] >= 0 for t in timings)


@pytest.mark.parametrize("cut", range(0, 60, 7))
def test_a_journal_takes_an_unfinished_end_off(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "x.jsonl"
    journal = Journal(path, ("a",))
    for i in range(3):
        journal.add({"a": i, "text": "\n\ud800é"})
    journal.close()
    data = path.read_bytes()
    kept = len(data) - cut
    path.write_bytes(data[:kept])
    again = Journal(path, ("a",))
    good = data[: data[:kept].rfind(b"\n") + 1]
    assert path.read_bytes() == good
    assert again.mended == kept - len(good)
    assert [r["a"] for r in again.records.values()] == list(range(good.count(b"\n")))
    assert all(r["text"] == "\n\ud800é" for r in again.records.values())
    for i in range(3):
        if (i,) not in again:
            again.add({"a": i, "text": "\n\ud800é"})
    again.close()
    assert path.read_bytes() == data


@pytest.mark.parametrize("garbage", [b"\0\0\0\0\n", b"[1]\n", b'{"b": 1}\n', b"\xff\xfe\n"])
def test_a_journal_drops_what_follows_garbage(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n' + garbage + b'{"a": 2}\n')
    journal = Journal(path, ("a",))
    journal.close()
    assert list(journal.records) == [(1,)]
    assert path.read_bytes() == b'{"a": 1}\n'


def test_another_run_s_folder_is_refused(tmp_path: Path) -> None:
    with Folder(tmp_path / "run", ABOUT) as folder:
        assert not folder.continued
    with Folder(tmp_path / "run", ABOUT) as folder:
        assert folder.continued
    other = {"model": {"name": "random"}, "settings": {"n": 21, "k": [1, 10]}}
    with pytest.raises(ValueError, match="settings.n was 20, is 21; repeat its settings"):
        Folder(tmp_path / "run", other)
    with pytest.raises(ValueError, match="model.name was 'random', is 'other'"):
        Folder(tmp_path / "run", ABOUT | {"model": {"name": "other"}})
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(ValueError, match=r"holds cat.jpg and is not the folder of a run"):
        Folder(tmp_path / "photos", ABOUT)


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    with Folder(tmp_path, ABOUT), pytest.raises(ValueError, match="process .* is working here"):
        Folder(tmp_path, ABOUT)
    with Folder(tmp_path, ABOUT):  # the lock went with its holder
        pass


@dataclass(frozen=True)
class Said:
    passed: bool
    result: str


class Slow:
    """Judge in a thread, passing what holds "2"; knows how many it judges at the moment, and on which cores."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, int]] = []
        self.busy = 0
        self.most = 0
        self.cores: set[int] = set()

    def submit(self, task: Task, completion: str, unindent: int) -> Future[Said]:
        self.asked.append((task.task_id, completion, unindent))
        self.busy += 1
        self.most = max(self.most, self.busy)
        future: Future[Said] = Future()

        def work() -> None:
            self.cores |= os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
            time.sleep(0.005)
            self.busy -= 1
            future.set_result(Said("2" in completion, "passed" if "2" in completion else "failed"))

        threading.Thread(target=work).start()
        return future


class Says:
    """A generator that says "2" or "3"; notes whether anything was being judged meanwhile."""

    def __init__(self, judge: Slow) -> None:
        self.judge = judge
        self.disturbed = False

    def describe(self) -> dict[str, Any]:
        return {"name": "says"}

    def answer(self, task: Task, numbers: range, how: Decoding) -> list[Answer]:
        self.disturbed |= self.judge.busy > 0
        return [Answer(t, t, 0, "stop", 1, 0.25) for t in ("2" if i % 2 else "3" for i in numbers)]


@pytest.mark.parametrize("turns", [True, False])
def test_judging_and_answering_take_turns_where_they_share_cores(tmp_path: Path, turns: bool) -> None:
    judge = Slow()
    generator = Says(judge)
    with Folder(tmp_path, ABOUT) as folder:
        answer_all(TASKS, 2, WARM, generator, folder, Judging({"": judge.submit}, folder, None, turns))
        samples = samples_of(TASKS, 2, folder)
    assert generator.disturbed is not turns
    assert [s.passed_raw for s in samples] == [False, True] * 3
    # Raw and shown are the same text, judged once; so are the two baselines of t/0.
    assert len(judge.asked) == 3 * 4 - 1


def test_what_is_judged_is_not_judged_again(tmp_path: Path) -> None:
    judge = Slow()
    for _ in range(2):
        with Folder(tmp_path, ABOUT) as folder:
            answer_all(TASKS, 2, WARM, Says(judge), folder, Judging({"": judge.submit}, folder, None, False))
    assert len(judge.asked) == 3 * 4 - 1


def test_few_programs_wait(tmp_path: Path) -> None:
    judge = Slow()
    tasks = [Task(f"t/{i}", f"x{i} = ", "\n", expected="2") for i in range(100)]
    with Folder(tmp_path, ABOUT) as folder:
        answer_all(tasks, 2, WARM, Says(judge), folder, Judging({"": judge.submit}, folder, None, False))
        assert len(folder.verdicts.records) == 100 * 6
    assert judge.most <= MOST_WAITING + 8


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs affinity")
def test_cores_are_shared_out() -> None:
    cores = os.sched_getaffinity(0)
    with share_cores(None, judge=True) as (threads, rest):
        if len(cores) == 1:
            assert (threads, rest) == (None, None)
        else:
            assert rest is not None and threads is not None
            assert threads + len(rest) == len(cores)
            assert os.sched_getaffinity(0) | rest == cores and not os.sched_getaffinity(0) & rest
            with on_cores(rest):
                assert os.sched_getaffinity(0) == rest
            assert not os.sched_getaffinity(0) & rest
    assert os.sched_getaffinity(0) == cores
    with share_cores(len(cores), judge=True) as shared:  # all are wanted: turns
        assert shared == (len(cores), None)
    with share_cores(None, judge=False) as shared:
        assert shared == (None, None)
        assert os.sched_getaffinity(0) == cores


def test_judging_runs_on_the_cores_that_are_left(tmp_path: Path) -> None:
    if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) == 1:
        pytest.skip("needs two cores")
    judge = Slow()
    with share_cores(None, judge=True) as (_, rest), Folder(tmp_path, ABOUT) as folder:
        answer_all(TASKS, 1, WARM, Says(judge), folder, Judging({"": judge.submit}, folder, rest, False))
    assert judge.cores == rest


def test_scores(tmp_path: Path) -> None:
    judge = Slow()
    with Folder(tmp_path, ABOUT) as folder:
        judges = {"": judge.submit, " published": Slow().submit}
        answer_all(TASKS, 2, WARM, Says(judge), folder, Judging(judges, folder, None, False))
        samples = samples_of(TASKS, 2, folder)
        baselines = baseline_samples(TASKS, folder)
    scores = scores_of(samples, [1, 2])
    assert scores["pass@1 raw"].value == 0.5
    assert scores["pass@2 shown"].value == 1.0
    assert scores["exact_match raw"].value == 0.25  # "2" is right once in four answers to two holes
    assert scores["exact_match raw"].n == 2
    assert scores["latency_s median"].value == 0.25
    assert scores["tokens mean"].value == 1.0
    assert differing(samples) == 0
    assert set(baselines) == {"empty middle", "previous line"}
    assert scores_of(baselines["empty middle"], [1])["pass@1 raw"].value == 0.0


def test_an_interrupted_run_scores_what_is_whole(tmp_path: Path) -> None:
    with Folder(tmp_path, ABOUT) as folder:
        generator = Says(Slow())
        answer_all(TASKS[:2], 2, WARM, generator, folder, nobody(folder))
        answer_all(TASKS[2:], 1, WARM, generator, folder, nobody(folder))
        samples = samples_of(TASKS, 2, folder)
    assert {s.task_id for s in whole(TASKS, samples, 2)} == {"t/0", "t/1"}


def test_shown_is_what_an_editor_shows() -> None:
    lines = Task("t", "def f(x):\n", "    return y\n", whole_lines=True)
    assert show(lines, "    y = 1\n    return y\n", None) == ("    y = 1\n", 0)
    assert show(lines, "    y = 1\n    y = 2\n", "line") == ("    y = 1\n", 0)
    span = Task("t", "def f(x):\n    y = ", "\n    return y\n")
    assert show(span, "1\n    y = 2", "line") == ("1", 0)


def test_baselines() -> None:
    assert baseline("previous line", Task("t", "", "x")) == "\n"
    assert baseline("previous line", Task("t", "a\n\n", "\nx")) == "a"
    assert baseline("empty middle", Task("t", "a\n", "x")) == ""
