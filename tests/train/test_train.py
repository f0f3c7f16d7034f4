"""The data iterator, the loss and the loop: nothing lost, exact resume, golden losses."""

import dataclasses
import hashlib
import itertools
import json

import numpy as np
import pytest
import torch
from documents import read_document
from torch import nn
from torch.utils.data import ConcatDataset

from codegen2.config import EOT, ModelConfig
from codegen2.files.shards import write_shard
from codegen2.model import Attention, CodeGen2
from codegen2.text.infill import SEP
from codegen2.text.tokenizer import Tokenizer
from codegen2.train import optim, recipes
from codegen2.train.attention import BlockwiseAttention
from codegen2.train.checkpoint import FILE, read_state
from codegen2.train.config import Machine, Stage, TrainConfig
from codegen2.train.corruption import CorruptionConfig
from codegen2.train.data import (
    IGNORE,
    Pieces,
    batches,
    open_shards,
    sequences,
    shard_stems,
)
from codegen2.train.loop import train
from codegen2.train.optim import draw_candidates, head_losses, learning_rate_scale
from codegen2.train.step import Step
from codegen2.train.tables import Tables

CAUSAL = CorruptionConfig(causal_probability=1.0)
CORRUPT = CorruptionConfig(causal_probability=0.0)
TABLES = Tables([b"x" if i % 7 else b"\n" for i in range(51200)])


class Docs:
    """Documents of ids whose values say where they come from."""

    def __init__(self, sizes, first=0):
        edges = np.cumsum([first, *sizes])
        self.docs = [np.arange(a, b, dtype=np.uint16) for a, b in itertools.pairwise(edges)]

    def __len__(self):
        return len(self.docs)

    def __getitem__(self, i):
        return self.docs[i]


DOCS = Docs([5, 700, 1, 90, 300, 64, 33, 250, 2000, 7])


def take(config, n, state=None, length=128):
    return list(itertools.islice(sequences(DOCS, length, config, 7, TABLES, state), n))


def test_causal_sequences_hold_every_token_once():
    n_tokens = sum(map(len, DOCS.docs)) + len(DOCS)
    ids = np.concatenate([row for row, _ in take(CAUSAL, 40)])
    ids = ids[ids != IGNORE]
    one_epoch = ids[:n_tokens]
    text = np.sort(one_epoch[one_epoch != EOT])
    assert np.array_equal(text, np.arange(len(text)))
    # Each document is followed by one EOT.
    last = {int(d[-1]) for d in DOCS.docs}
    assert all(int(a) in last for a, b in itertools.pairwise(one_epoch) if b == EOT)


def test_corrupted_sequences_hold_every_token_once():
    seen = []
    for row, state in take(CORRUPT, 60):
        ids = row[row != IGNORE].tolist()
        while ids:  # documents stand back to back: text EOT SEP answers EOT
            end = ids.index(EOT, ids.index(SEP))
            seen += read_document(ids[: end + 1])
            ids = ids[end + 1 :]
        if state["position"] >= len(DOCS):
            break
    whole = sum(map(len, DOCS.docs))
    assert np.array_equal(np.sort(seen[:whole]), np.arange(whole))


def test_half_of_the_sequences_are_causal():
    rows = [row for row, _ in take(CorruptionConfig(), 600)]
    share = np.mean([SEP not in row for row in rows])
    assert abs(share - 0.5) < 0.07


@pytest.mark.parametrize("config", [CAUSAL, CORRUPT, CorruptionConfig(line_span_probability=0.5)])
def test_a_state_resumes_exactly(config):
    whole = take(config, 30)
    for cut in (1, 7, 29):
        again = take(config, 30 - cut, state=whole[cut - 1][1])
        assert all(np.array_equal(a, b) and s == t for (a, s), (b, t) in zip(whole[cut:], again, strict=True))


def test_batches_shift_and_pad():
    row = np.array([1, 2, 3, IGNORE])
    inputs, targets, state = next(batches(iter([(row, {"sequence": 1}), (row, {"sequence": 2})]), 2))
    assert inputs.tolist() == [[1, 2, 3]] * 2
    assert targets.tolist() == [[2, 3, IGNORE]] * 2
    assert state == {"sequence": 2}


def test_pieces_hold_every_token_once_and_end_lines():
    ends = np.zeros(51200, dtype=bool)
    ends[::30] = True
    pieces = Pieces(DOCS, 64, ends)
    found = [pieces[i] for i in range(len(pieces))]
    assert np.array_equal(np.concatenate(found), np.concatenate(DOCS.docs))
    assert max(map(len, found)) <= 64
    last = {int(d[-1]) for d in DOCS.docs}
    assert all(ends[p[-1]] for p in found if int(p[-1]) not in last)
    bare = Pieces(DOCS, 64, np.zeros(51200, dtype=bool))  # no line ends at all
    assert np.array_equal(np.concatenate([bare[i] for i in range(len(bare))]), np.concatenate(DOCS.docs))
    with pytest.raises(ValueError, match="at least 64"):
        Pieces(DOCS, 10, ends)


def test_line_ends():
    table = Tables.of(Tokenizer(), 51200).ends_line
    assert table[198]
    assert table[628]  # two newlines
    assert not table[199]
    assert not table[EOT]


def reference_loss(h, head, targets, z_loss):
    logits = head(h)
    lse = logits.logsumexp(-1)
    kept = targets != IGNORE
    nll = nn.functional.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
    return (nll + z_loss * lse[kept].square().sum()) / kept.sum()


def head_loss(*args, **options):
    return head_losses(*args, **options)[0]


def test_chunked_loss_and_gradients_equal_the_plain_ones():
    torch.manual_seed(0)
    h = torch.randn(2500, 16, requires_grad=True)
    head = nn.Linear(16, 50)
    targets = torch.randint(0, 50, (2500,))
    targets[::9] = IGNORE
    grads = []
    for loss in (head_loss(h, head, targets, None, 1e-2), reference_loss(h, head, targets, 1e-2)):
        grads.append([loss.detach(), *torch.autograd.grad(loss, [h, head.weight, head.bias])])
    for ours, plain in zip(*grads, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-4)


def test_weights_count_targets_as_often():
    torch.manual_seed(0)
    h, head, targets = torch.randn(3, 16), nn.Linear(16, 50), torch.tensor([4, 5, 6])
    weighted = head_loss(h, head, targets, weights=torch.tensor([1.0, 3.0, 0.0]))
    repeated = head_loss(h[[0, 1, 1, 1]], head, targets[[0, 1, 1, 1]])
    torch.testing.assert_close(weighted, repeated)


def test_sampled_loss_estimates_the_full_one():
    torch.manual_seed(0)
    h, head = torch.randn(400, 16), nn.Linear(16, 3000)
    targets = torch.randint(0, 100, (400,))
    full = head_loss(h, head, targets)
    drawn = [
        head_loss(
            h,
            head,
            targets,
            draw_candidates(targets.numpy(), np.arange(100), 3000, 700, np.random.default_rng(s)),
        )
        for s in range(20)
    ]
    assert abs(float((torch.stack(drawn).mean() - full).detach())) < 0.01
    with pytest.raises(ValueError, match="raise head_candidates"):
        draw_candidates(targets.numpy(), np.arange(100), 3000, 50, np.random.default_rng(0))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # of torch.compile's own
def test_losses_over_several_stretches_of_rows_and_compiled_equal_the_plain_one(monkeypatch):
    """The sweep goes over rows in stretches, the products in chunks; neither may be seen in the result."""
    h, head, targets = torch.randn(37, 16), nn.Linear(16, 200), torch.randint(0, 200, (37,))
    targets[5] = IGNORE
    found = []
    for chunk, cache, compiled in (
        (10**9, 10**9, False),
        (200 * 4 * 10, 200 * 4 * 3, False),
        (10**9, 1, True),
    ):
        monkeypatch.setattr(optim, "_CHUNK_BYTES", chunk)
        monkeypatch.setattr(optim, "_CACHE_BYTES", cache)
        leaf = h.clone().requires_grad_()
        head.zero_grad()
        loss, nats = optim.head_losses(leaf, head, targets, None, 1e-2, compiled=compiled)
        loss.backward()
        found.append((loss.detach(), nats, leaf.grad, head.weight.grad.clone(), head.bias.grad.clone()))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=2e-5, atol=1e-6)
    plain = nn.functional.cross_entropy(head(h), targets, reduction="sum").detach()
    torch.testing.assert_close(found[0][1], plain)


@pytest.mark.parametrize("length", [1, 33, 64, 200])
def test_blockwise_attention_and_its_gradients_equal_the_models(length):
    config = ModelConfig(n_ctx=256, n_embd=64, n_layer=1, n_head=2, rotary_dim=16)
    q, k, v, g = torch.randn(4, 2, 2, length, 32).bfloat16().float()
    found = []
    for kind in (Attention, BlockwiseAttention):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = kind(config).mix(*leaves, None)
        (out.float() * g).sum().backward()
        found.append([out.float(), *(x.grad for x in leaves)])
    for ours, theirs in zip(*found, strict=True):
        # One token sees itself only: its score's gradient is nothing, up to rounding.
        assert (ours - theirs).norm() < 0.01 * max(theirs.norm(), g.norm())
    mask = torch.ones(length, length, dtype=torch.bool).tril(-1) | torch.eye(length, dtype=torch.bool)
    masked = BlockwiseAttention(config).mix(q, k, v, mask)
    torch.testing.assert_close(masked, Attention(config).mix(q, k, v, mask))


def test_learning_rate_ends_at_zero():
    config = dataclasses.replace(TINY, warmup_steps=5, cooldown_steps=20, max_steps=50)
    scale = [learning_rate_scale(s, config) for s in range(50)]
    assert max(scale) == 1.0
    assert scale.index(1.0) == 4
    assert scale == sorted(scale[:5]) + sorted(scale[5:], reverse=True)
    assert 0 < scale[-1] <= 1 / 20


TINY = TrainConfig(
    model=ModelConfig(n_ctx=64, n_embd=16, n_layer=2, n_head=1, rotary_dim=8, tie_word_embeddings=True),
    corruption=CorruptionConfig(line_span_probability=0.3),
    stages=(Stage(0, 32, 4), Stage(4, 64, 2, CorruptionConfig(), span_weight=3.0)),
    grad_accum_steps=2,
    max_steps=7,
    warmup_steps=2,
    cooldown_steps=3,
    matrix_lr=0.02,
    head_candidates=5000,
    full_head_from_step=5,
    bfloat16=False,
    seed=5,
    checkpoint_every=4,
)
FREQUENT = np.arange(3600)


def weights_hash(model):
    digest = hashlib.sha256()
    for p in model.state_dict().values():
        digest.update(p.numpy().tobytes())
    return digest.hexdigest()


def losses(run_dir):
    return [json.loads(line)["loss"] for line in (run_dir / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("bfloat16", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_stop_and_resume_equals_no_stop(tmp_path, bfloat16):
    config = dataclasses.replace(TINY, bfloat16=bfloat16)
    whole = weights_hash(train(config, DOCS, tmp_path / "whole", frequent=FREQUENT))
    part = dataclasses.replace(config, checkpoint_every=3)
    run_dir = tmp_path / "parts"

    class Killed(Exception):
        pass

    def kill(line):
        if line["step"] == 5:
            raise Killed

    with pytest.raises(Killed):
        train(part, DOCS, run_dir, frequent=FREQUENT, report=kill)  # its last checkpoint is step 3's
    with (run_dir / "log.jsonl").open("a") as log:
        log.write('{"step": 6, "lo')
    assert weights_hash(train(part, DOCS, run_dir, frequent=FREQUENT)) == whole
    assert losses(run_dir) == losses(tmp_path / "whole")
    assert len(losses(run_dir)) == config.max_steps


def test_a_stage_brings_its_own_corruption(tmp_path, monkeypatch):
    seen = []

    def recorded(docs, length, corruption, *rest, **more):
        seen.append((length, corruption))
        return sequences(docs, length, corruption, *rest, **more)

    monkeypatch.setattr("codegen2.train.loader.sequences", recorded)
    stages = (TINY.stages[0], dataclasses.replace(TINY.stages[1], from_step=1))
    train(dataclasses.replace(TINY, stages=stages, max_steps=2), DOCS, tmp_path, frequent=FREQUENT)
    # Twice each: two micro-batches a step are two streams.
    assert seen == [(32, TINY.corruption)] * 2 + [(64, TINY.stages[1].corruption)] * 2
    assert TINY.corruption != TINY.stages[1].corruption


def test_it_learns(tmp_path):
    config = dataclasses.replace(
        TINY, model=dataclasses.replace(TINY.model, n_embd=64), corruption=CAUSAL,
        stages=(Stage(0, 64, 2),), grad_accum_steps=1, max_steps=10, lr=2e-2,
        head_candidates=4000, full_head_from_step=None,
    )  # fmt: skip
    train(config, Docs([40] * 3), tmp_path, frequent=FREQUENT)
    found = losses(tmp_path)
    assert found[0] > 9
    assert found[-1] < 0.7 * found[0]


def test_max_seconds_leaves_a_checkpoint(tmp_path):
    seen = []
    train(TINY, DOCS, tmp_path, frequent=FREQUENT, max_seconds=0.0, report=seen.append)
    assert seen == losses(tmp_path) == []  # not a step was made
    assert read_state(tmp_path / FILE)["step"] == 0
    train(TINY, DOCS, tmp_path, frequent=FREQUENT, max_seconds=1e-9)
    assert not list(tmp_path.glob(".*"))


def test_another_recipe_and_other_documents_are_refused(tmp_path):
    train(dataclasses.replace(TINY, max_steps=1), DOCS, tmp_path, frequent=FREQUENT)
    with pytest.raises(ValueError, match="another lr, seed"):
        train(dataclasses.replace(TINY, lr=1.0, seed=6), DOCS, tmp_path, frequent=FREQUENT)
    config = dataclasses.replace(TINY, max_steps=2)
    with pytest.raises(ValueError, match="other documents"):
        train(config, ConcatDataset([DOCS, DOCS]), tmp_path, frequent=FREQUENT)
    train(config, DOCS, tmp_path, frequent=FREQUENT)
    assert len(losses(tmp_path)) == 2


def test_the_box_is_a_recipe():
    config = recipes.recipe("box")
    assert config.model.n_params == 19_464_704
    late = config.stage(config.max_steps - 1)
    assert (late.seq_len * late.micro_batch_size, late.span_weight) == (16_384, 2.0)
    assert late.corruption.text_hole_probability == 0.95
    # The order is longer than what is read: spans cost tokens of their own.
    assert config.mixture.tokens == 130_000_000
    assert TrainConfig.check_same(config, config.to_json(), "") is None
    gone = ', "snap": "none", "psm_probability": 0.0, "line_spans": [1, 1]'  # as earlier versions wrote it
    earlier = config.to_json().replace('"line_span_piece"', f'{gone[2:]}, "line_span_piece"')
    assert earlier.count(gone[2:]) == 3 and config.check_same(earlier, "") is None
    with pytest.raises(ValueError, match="another corruption"):
        config.check_same(earlier.replace('"none"', '"line"'), "")
    with pytest.raises(ValueError, match="a mixture has a piece_tokens of its own"):
        dataclasses.replace(config, piece_tokens=512)


def shard_names(found):
    return [stem.name for stem in found]


def test_a_folder_is_never_trained_on_what_it_holds_out(tmp_path):
    names = [
        "train-00000",
        "train-00001",
        "heldout-00000",
        "sub/valid_0",
        "sub/test-00000-of-00001",
        "tests",
        "dev/part0",
    ]
    for name in names:
        write_shard(tmp_path / "tokens" / name, [[1, 2]])
    trained, left = shard_stems([tmp_path, tmp_path / "tokens"])
    assert shard_names(trained) == ["tests", "train-00000", "train-00001"]  # each once
    assert sorted(set(shard_names(left))) == ["heldout-00000", "part0", "test-00000-of-00001", "valid_0"]
    scored = shard_names(shard_stems([tmp_path], held_out=True)[0])
    assert scored == ["part0", "heldout-00000", "test-00000-of-00001", "valid_0"]
    for named in ("heldout-00000", "heldout-00000.bin", "dev/part0"):
        with pytest.raises(ValueError, match="is held out, so it is not trained on; give it by --valid"):
            shard_stems([tmp_path / "tokens" / named])
    # What a shell makes of train-*.
    files = sorted((tmp_path / "tokens").glob("train-*"))
    assert len(files) == 6 and shard_names(shard_stems(files)[0]) == ["train-00000", "train-00001"]


def test_folders_without_the_shards_that_are_asked_for(tmp_path):
    write_shard(tmp_path / "a" / "train-00000", [[1]])
    write_shard(tmp_path / "b" / "heldout-00000", [[1]])
    write_shard(tmp_path / "c" / "part0", [[1]])
    (tmp_path / "d").mkdir()
    assert shard_names(shard_stems([tmp_path / "c"], held_out=True)[0]) == ["part0"]
    for folder, held_out, said in (
        ("a", True, "holds no shards that are held out; hold packages out when building it"),
        ("b", False, "holds no shards but held out"),
        ("d", False, "holds no token shards; codegen2 data tokenise"),
    ):
        with pytest.raises(ValueError, match=said):
            shard_stems([tmp_path / folder], held_out)
    with pytest.raises(ValueError, match="x: no folder and no shard; codegen2 data tokenise CORPUS writes"):
        open_shards([tmp_path / "x"])


@pytest.mark.parametrize("emulated", [False, True])
def test_bfloat16_is_float32_where_it_is_only_emulated(monkeypatch, emulated):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2" if emulated else "AVX512")
    plain = Step(CodeGen2(TINY.model), dataclasses.replace(TINY, bfloat16=True), Machine())
    seen = []
    plain.model.transformer.h[0].attn.qkv_proj.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    ids = torch.arange(8)[None]
    plain(ids, ids, torch.ones(1, 8))
    assert seen == [torch.float32 if emulated else torch.bfloat16]
