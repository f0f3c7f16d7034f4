"""Exact resume: a run killed twenty times at any moment ends with the weights of a run that never stopped."""

import dataclasses
import multiprocessing
import random
import resource

import numpy as np
import pytest
import train_tiny

from codegen2.files.shards import Shard, write_shard
from codegen2.train import checkpoint
from codegen2.train.loop import train


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

    class Wild:
        def __len__(self):
            return 1

        def doc(self, i):
            return wild

    with pytest.raises((ValueError, IndexError)):
        train(train_tiny.CONFIG, Wild(), tmp_path / "wild")
