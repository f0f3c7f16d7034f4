"""Exact resume: a run killed twenty times at any moment ends with the weights of a run that never stopped."""

import dataclasses
import json
import multiprocessing
import os
import random
import resource
import signal
import threading
import zipfile

import numpy as np
import pytest
import torch
import train_tiny

from codegen2.cli import main as cli
from codegen2.files.lock import only_one
from codegen2.files.shards import Shard, write_shard
from codegen2.train import checkpoint, loop
from codegen2.train.loop import train
from codegen2.train.stop import Interrupted


def start(*args):
    # Forked from a server that has imported torch once and has no threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train_tiny"])
    process = context.Process(target=train_tiny.live, args=args)
    process.start()
    return process


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path):
    stems = train_tiny.write_shards(tmp_path / "shards")
    whole = start(stems, tmp_path / "whole", "", 0)
    whole.join()
    assert whole.exitcode == 0
    rng = random.Random(7)
    deaths = [("write", rng.randint(1, 25)) for _ in range(5)]
    deaths += [("rename", 2), ("rename", 3), ("rename", 3)]  # the first replace is the log's
    deaths += [("micro", rng.choice((1, 3, 5, 7))) for _ in range(5)] + [("time", 0)] * 7
    rng.shuffle(deaths)
    killed = 0
    for death, count in deaths:
        process = start(stems, tmp_path / "parts", death, count)
        if death == "time":
            process.join(rng.uniform(0.05, 3.0))
            process.kill()
        process.join()
        killed += process.exitcode == -9
    assert killed >= 12  # a late one may find the run finished
    last = start(stems, tmp_path / "parts", "", 0)
    last.join()
    assert last.exitcode == 0
    assert train_tiny.weights_hash(tmp_path / "parts") == train_tiny.weights_hash(tmp_path / "whole")


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path):
    stems = train_tiny.write_shards(tmp_path / "shards", 1)
    docs = Shard(stems[0])
    run_dir = tmp_path / "run"
    config, frequent = dataclasses.replace(train_tiny.CONFIG, max_steps=5), np.arange(700)
    train(dataclasses.replace(config, max_steps=2), docs, run_dir, frequent=frequent)
    before = train_tiny.weights_hash(run_dir)
    step = checkpoint.read_state(run_dir / checkpoint.FILE)["step"]
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (4000, 2_000_000):  # the log's first lines fit, or part of a checkpoint
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
        try:
            with pytest.raises(OSError, match="could not be written|could not be logged") as caught:
                train(config, docs, run_dir, frequent=frequent)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        assert f"of step {step} is whole" in str(caught.value)
        assert train_tiny.weights_hash(run_dir) == before
        assert not list(run_dir.glob(".*.part"))
    (run_dir / ".checkpoint.pt.1.0.part").write_bytes(b"left by a killed run")
    train(config, docs, run_dir, frequent=frequent)  # and on it goes
    assert train_tiny.weights_hash(run_dir) != before
    assert not list(run_dir.glob(".*"))


def test_a_damaged_checkpoint_and_a_damaged_shard_are_named(tmp_path):
    stem = tmp_path / "part"
    write_shard(stem, [[1, 2, 3]] * 9)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / checkpoint.FILE).write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(ValueError, match="no whole checkpoint"):
        train(train_tiny.CONFIG, Shard(stem), run_dir)
    data = bytearray((tmp_path / "part.bin").read_bytes())
    data[3] ^= 1
    (tmp_path / "part.bin").write_bytes(data)
    with pytest.raises(ValueError, match="part.bin has sha256"):
        Shard(stem, check_hash=True)
    wild = np.full(300, 60000, np.uint16)

    with pytest.raises((ValueError, IndexError)):
        train(train_tiny.CONFIG, [wild], tmp_path / "wild")


SMALL = dataclasses.replace(train_tiny.CONFIG, max_steps=4, cooldown_steps=1)


def damages(path, other):
    """Yield what a checkpoint holds when damaged, None where it is lost; other: the file of another step."""
    data = path.read_bytes()
    yield from (
        None,
        b"",
        data[: len(data) // 2],
        data[:-1],
        data[:-50],
        data[:-100],
        data + b"\n",
        data + data,
    )
    with zipfile.ZipFile(path) as file:
        members = {info.filename.partition("/")[2]: info for info in file.infolist()}
    # One of each kind of content: pickled step, places and config; a weight, an optimizer's state, the last storage.
    for name in ("data.pkl", "version", "byteorder", "data/0", "data/20", max(members)):
        info = members[name]
        for at in (info.header_offset + 8, info.header_offset + 64 + info.file_size // 2):
            yield data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
    at = data.index(b"data_states")
    yield data[: at + 40] + bytes([data[at + 40] ^ 1]) + data[at + 41 :]
    at = data.index(b'"lr": 0.002')
    yield data[:at] + b'"lr": 0.003' + data[at + 11 :]
    middle = len(data) // 2
    yield data[:middle] + bytes(4096) + data[middle + 4096 :]
    yield data[:middle] + other[middle:]  # half of another step
    yield bytes(len(data))
    for at in (len(data) - 81, len(data) - 70, len(data) - 10):  # in the digest's own line
        yield data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_every_damage_to_a_checkpoint_is_refused(tmp_path):
    (stem,) = train_tiny.write_shards(tmp_path / "shards", 1)
    run_dir, docs = tmp_path / "run", Shard(stem)
    path = run_dir / checkpoint.FILE
    train(dataclasses.replace(SMALL, max_steps=2), docs, run_dir)
    other = path.read_bytes()
    train(dataclasses.replace(SMALL, max_steps=3), docs, run_dir)
    good = path.read_bytes()
    tried = list(damages(path, other))
    assert len(tried) == 28
    for bad in tried:
        path.unlink() if bad is None else path.write_bytes(bad)
        with pytest.raises(
            ValueError, match="checkpoint.pt: is .*; put (it|a copy of it) back, or remove"
        ) as caught:
            # What the loop asks; only what is lost, or whole again, needs the loop itself.
            train(SMALL, docs, run_dir) if bad is None else checkpoint.read_state(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(good)
    train(SMALL, docs, run_dir)


def test_a_checkpoint_without_a_digest_is_verified_by_its_zip(tmp_path, caplog):
    (stem,) = train_tiny.write_shards(tmp_path / "shards", 1)
    path = tmp_path / checkpoint.FILE
    train(dataclasses.replace(SMALL, max_steps=2), Shard(stem), tmp_path)
    state = checkpoint.read_state(path)
    old = {key: value for key, value in state.items() if key != "digest"}
    torch.save(old, tmp_path / "old.pt")  # as an earlier version wrote it
    os.replace(tmp_path / "old.pt", path)
    assert checkpoint.read_state(path)["step"] == 2
    assert "of an earlier version, without a digest" in caplog.text
    data = path.read_bytes()
    at = len(data) // 2
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(ValueError, match="has another checksum|Bad CRC"):
        checkpoint.read_state(path)


def test_one_trainer_a_folder(tmp_path):
    (stem,) = train_tiny.write_shards(tmp_path / "shards", 1)
    run_dir = tmp_path / "run"
    with only_one(run_dir, "wait"), pytest.raises(ValueError) as caught:
        train(SMALL, Shard(stem), run_dir)
    assert str(caught.value).startswith(
        f"{run_dir}: process {os.getpid()} is working here; wait for it, or give"
    )
    process = start([stem], run_dir, "micro", 3)  # killed while it held the lock
    process.join()
    assert process.exitcode == -9
    assert (run_dir / ".lock").read_text() == str(process.pid)
    train(train_tiny.CONFIG, Shard(stem), run_dir, frequent=np.arange(700), max_seconds=0.0)
    assert not list(run_dir.glob(".*"))


@pytest.mark.parametrize("signum", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_leaves_a_checkpoint_that_goes_on_exactly(tmp_path, signum, capfd):
    (stem,) = train_tiny.write_shards(tmp_path / "shards", 1)
    before = signal.getsignal(signum)
    train(SMALL, Shard(stem), tmp_path / "whole")
    config = dataclasses.replace(SMALL, checkpoint_every=100)

    def strike(line):
        if line["step"] == 2:
            os.kill(os.getpid(), signum)

    with pytest.raises(
        Interrupted, match="step 2 of 4 is saved in .*; run the same again to go on"
    ) as caught:
        train(config, Shard(stem), tmp_path / "parts", report=strike)
    assert caught.value.signum == signum
    assert "the same again ends at once" in capfd.readouterr().err
    assert signal.getsignal(signum) == before
    assert checkpoint.read_state(tmp_path / "parts" / checkpoint.FILE)["step"] == 2
    train(config, Shard(stem), tmp_path / "parts")
    assert train_tiny.weights_hash(tmp_path / "parts") == train_tiny.weights_hash(tmp_path / "whole")


def test_a_signal_at_the_last_step_still_ends_the_program(tmp_path):
    (stem,) = train_tiny.write_shards(tmp_path / "shards", 1)
    with pytest.raises(Interrupted, match="step 1 of 1 is saved"):
        train(
            dataclasses.replace(SMALL, max_steps=1), Shard(stem), tmp_path / "run",
            report=lambda line: os.kill(os.getpid(), signal.SIGTERM),
        )  # fmt: skip


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_at_once(tmp_path, signum):
    stems = train_tiny.write_shards(tmp_path / "shards", 1)
    process = start(stems, tmp_path / "run", f"twice {signum:d}", 2)
    process.join()
    assert process.exitcode == -signum
    assert not (tmp_path / "run" / checkpoint.FILE).exists()


def test_a_thread_trains_without_signals(tmp_path):
    (stem,) = train_tiny.write_shards(tmp_path / "shards", 1)
    config = dataclasses.replace(SMALL, max_steps=1)
    thread = threading.Thread(target=lambda: train(config, Shard(stem), tmp_path / "run"))
    thread.start()
    thread.join()
    assert checkpoint.read_state(tmp_path / "run" / checkpoint.FILE)["step"] == 1


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), 130), (Interrupted(15, "step 2 is saved"), 143)]
)
def test_the_exit_status_says_which_signal(monkeypatch, capsys, error, status):
    def interrupted(*args):
        raise error

    monkeypatch.setattr("codegen2.train.cli.run_plot_run", interrupted)
    assert cli.main(["plot-run", "x"]) == status
    assert capsys.readouterr().err == f"codegen2: interrupted{': step 2 is saved' * bool(error.args)}\n"


def test_max_seconds_counts_loading_and_saving(tmp_path, monkeypatch):
    (stem,) = train_tiny.write_shards(tmp_path / "shards", 1)
    now = [0.0]
    for name, seconds in (("_start", 7.0), ("_optimizer_step", 1.5), ("write_state", 6.0)):
        train_tiny.takes(monkeypatch, now, loop, name, seconds)
    seen = []
    config = dataclasses.replace(SMALL, max_steps=1000, checkpoint_every=4)
    train(config, Shard(stem), tmp_path, max_seconds=41.0, clock=lambda: now[0], report=seen.append)
    # 7 of loading, 4 steps, 6 of saving, 4 steps, 6, 2 steps: a third would leave no room for the last 6.
    assert now[0] == 7 + 10 * 1.5 + 3 * 6
    assert checkpoint.read_state(tmp_path / checkpoint.FILE)["step"] == 10
    assert [line["left_s"] for line in seen[:2]] == [32.5, 31.0]  # known from the first step on
    logged = [json.loads(line)["left_s"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert logged[-1] == 7.0
