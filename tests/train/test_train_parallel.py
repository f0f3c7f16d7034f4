"""Several processes, workers, compile and checkpointing of activations: all give the losses of one plain process."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import train_tiny

from codegen2.config import ModelConfig
from codegen2.files.shards import Shard
from codegen2.model import CodeGen2
from codegen2.train import loop
from codegen2.train.config import Machine, Stage
from codegen2.train.data import document_ids
from codegen2.train.loop import train

_SCRIPT = """
import dataclasses, sys
from pathlib import Path
import train_tiny
from codegen2.files.shards import Shard
from codegen2.train.loop import train
from codegen2.train.parallel import end_process
from codegen2.train.stop import Interrupted
import test_train_parallel as t
shard = Shard(Path(sys.argv[1]))
if sys.argv[3] == "struck":
    t.strike_second_process()
try:
    train(t.config(sys.argv[3] == "tied", int(sys.argv[4])), shard, Path(sys.argv[2]), valid=shard)
except Interrupted as e:
    print("interrupted:", e, file=sys.stderr)
    end_process(0 if e.signum == 15 else 1)
print("trained", file=sys.stderr)
end_process()
"""


def config(tied, max_steps=4):
    model = ModelConfig(n_ctx=64, n_embd=32, n_layer=2, n_head=2, rotary_dim=8, tie_word_embeddings=tied)
    return dataclasses.replace(
        train_tiny.CONFIG, model=model, stages=(Stage(0, 64, 1),), head_candidates=None, max_steps=max_steps,
        activation_checkpointing=True, document_mask=True, cooldown_steps=1,  # so that 2 steps begin as 4 do
    )  # fmt: skip


def lines(run_dir):
    return [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]


def strike_second_process():
    """Let the second of two processes get SIGTERM in the midst of its second step."""
    real, calls = loop.run_batch, []

    def struck(*args):
        calls.append(None)
        if os.environ["RANK"] == "1" and len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    loop.run_batch = struck


def two_processes(stem, run_dir, kind, max_steps):
    # --standalone finds a free port (--master-port 0 would have both wait for port 0, for ever).
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--local-addr", "127.0.0.1"]  # this machine's name need not lead anywhere
    env = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[:3])),
    }
    script = run_dir.parent / "script.py"
    script.write_text(_SCRIPT)
    done = subprocess.run(
        [*command, str(script), str(stem), str(run_dir), kind, str(max_steps)],
        env=env, capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tied", "untied"])  # untied models are made without memory and filled
def test_two_processes_give_the_losses_of_one(tmp_path, kind):
    (stem,) = train_tiny.write_shards(tmp_path / "shards", 1)
    train(config(kind == "tied"), Shard(stem), tmp_path / "one", valid=Shard(stem))
    two_processes(stem, tmp_path / "two", kind, 2)
    two_processes(stem, tmp_path / "two", kind, 4)  # goes on from the checkpoint
    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert [x["step"] for x in two] == [1, 2, 3, 4]
    for key in ("loss", "bits_per_byte", "grad_norm"):
        np.testing.assert_allclose([x[key] for x in two], [x[key] for x in one], atol=1e-4)
    assert two[-1]["tokens"] == one[-1]["tokens"]
    assert abs(two[-1]["valid_bits_per_byte"] - one[-1]["valid_bits_per_byte"]) < 1e-4
    # A run of two goes on with one.
    train(config(kind == "tied", 5), Shard(stem), tmp_path / "two")
    assert lines(tmp_path / "two")[-1]["step"] == 5


@pytest.mark.slow
def test_two_processes_stop_at_the_step_at_which_one_is_asked(tmp_path):
    (stem,) = train_tiny.write_shards(tmp_path / "shards", 1)
    train(config(False), Shard(stem), tmp_path / "one", valid=Shard(stem))
    said = two_processes(stem, tmp_path / "two", "struck", 4)
    assert said.count("interrupted: step 2 of 4 is saved") == 2
    assert [x["step"] for x in lines(tmp_path / "two")] == [1, 2]
    two_processes(stem, tmp_path / "two", "untied", 4)
    for key in ("loss", "grad_norm"):
        one, two = ([x[key] for x in lines(tmp_path / name)] for name in ("one", "two"))
        np.testing.assert_allclose(two, one, atol=1e-4)


def test_too_many_processes_are_refused(tmp_path, monkeypatch):
    from codegen2.train.loader import Source, micro_batches

    with pytest.raises(ValueError, match="cannot share 2 micro-batches"):
        micro_batches(Source(None, config(True), None, None, []), 0, 0, 3, 0)
    with pytest.raises(ValueError, match="3 workers cannot share 4 streams"):
        micro_batches(Source(None, config(True), None, None, []), 0, 0, 1, 3)


def test_checkpointed_activations_change_nothing(tmp_path):
    (stem,) = train_tiny.write_shards(tmp_path / "shards", 1)
    found = []
    for name, on in (("plain", False), ("again", True)):
        run = dataclasses.replace(config(True, 2), activation_checkpointing=on)
        train(run, Shard(stem), tmp_path / name)
        found.append([(x["loss"], x["grad_norm"]) for x in lines(tmp_path / name)])
    assert found[0] == found[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_give_the_same_batches(tmp_path):
    (stem,) = train_tiny.write_shards(tmp_path / "shards", 1)
    found = []
    for workers in (0, 2):
        train(config(True, 3), Shard(stem), tmp_path / str(workers), machine=Machine(workers=workers))
        found.append([x["loss"] for x in lines(tmp_path / str(workers))])
    assert found[0] == found[1]


def test_a_document_mask_hides_other_documents():
    torch.manual_seed(0)
    model = CodeGen2(ModelConfig(n_ctx=64, n_embd=32, n_layer=2, n_head=2, rotary_dim=8))
    model.init_weights(torch.Generator().manual_seed(1))
    first, second = [5, 6, 7, 50256], [8, 9, 10]
    ids = torch.tensor([first + second])
    documents = torch.from_numpy(document_ids(ids.numpy()))
    masked = model.hidden(ids, documents=documents)
    torch.testing.assert_close(masked[:, :4], model.hidden(torch.tensor([first])), atol=1e-5, rtol=1e-5)
    # Only distances count for rotary positions, so the second document is as if it stood alone.
    torch.testing.assert_close(masked[:, 4:], model.hidden(torch.tensor([second])), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(masked[:, 4:], model.hidden(ids)[:, 4:], atol=1e-4)
