"""Fine-tuning, adapters and training for int4: what is written is what was trained, on both engines."""

import json
import subprocess

import numpy as np
import pytest
import torch
import train_tiny

from codegen2 import load
from codegen2.api import Model
from codegen2.checkpoint.adapter import AdaptedWeights, read_adapter, write_adapter
from codegen2.checkpoint.load import build_model, load_model
from codegen2.checkpoint.weights import open_weights
from codegen2.cli.main import build_parser, main
from codegen2.config import ModelConfig
from codegen2.files.lock import only_one
from codegen2.model import CodeGen2
from codegen2.train import loop
from codegen2.train.config import Stage, TrainConfig
from codegen2.train.corruption import CorruptionConfig
from codegen2.train.export import export
from codegen2.train.finetuning import finetune
from codegen2.train.finetuning.repository import read_repository, split_files
from codegen2.train.linear import add_lora, additions, merge_lora, quantise_layers, round_int4
from codegen2.train.loop import train

SHAPE = ModelConfig(n_ctx=128, n_embd=64, n_layer=2, n_head=4, rotary_dim=8, tie_word_embeddings=True)
IDS = torch.tensor([[5, 600, 7, 50284, 12, 900]])


DOCS = [np.random.default_rng(i).integers(0, 900, 150) for i in range(4)]


def small(**more):
    values = {
        "stages": (Stage(0, 64, 2),),
        "max_steps": 3,
        "warmup_steps": 1,
        "cooldown_steps": 1,
        "lr": 5e-3,
    }
    return TrainConfig(SHAPE, CorruptionConfig(), **(values | {"bfloat16": False} | more))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    train(small(), DOCS, folder / "run")
    export(folder / "run", folder / "model", dtype="float32")
    return folder / "model"


def with_adapter():
    torch.manual_seed(0)
    model = CodeGen2(SHAPE)
    model.init_weights(torch.Generator().manual_seed(1))
    add_lora(model, 4, 8.0, 0)
    for name, p in model.named_parameters():
        if name.endswith("lora_B"):
            p.data.normal_(0, 0.1)
    return model


def test_merged_logits_equal_unmerged():
    model = with_adapter()
    unmerged = model(IDS).detach()
    merge_lora(model)
    assert not any("lora" in name for name, _ in model.named_parameters())
    torch.testing.assert_close(model(IDS), unmerged, atol=1e-5, rtol=1e-5)


def test_an_adapter_file_gives_the_same_on_both_engines(base, tmp_path, monkeypatch):
    monkeypatch.setenv("CODEGEN2_CACHE", str(tmp_path / "cache"))
    model = load_model(base)
    add_lora(model, 4, 8.0, 0)
    for name, p in model.named_parameters():
        if name.endswith("lora_B"):
            p.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(3))
    unmerged = model(IDS).detach().numpy()
    write_adapter(tmp_path / "adapter", additions(model), 8.0, "base")
    merged = build_model(
        AdaptedWeights(open_weights(base), tmp_path / "adapter"), torch.device("cpu"), torch.float32
    )
    np.testing.assert_allclose(merged(IDS).detach().numpy(), unmerged, atol=1e-5)
    expected = (
        torch.log_softmax(torch.from_numpy(unmerged), -1)[0, :-1].gather(1, IDS[0, 1:, None])[:, 0].numpy()
    )
    for engine in ("reference", "native"):
        ready = load(base, adapter=tmp_path / "adapter", engine=engine, dtype="float32")
        found = ready.engine.token_logprobs(IDS.numpy())[0]
        np.testing.assert_allclose(found, expected, atol=1e-4)
    plain = load(base, engine="native", dtype="float32").engine.token_logprobs(IDS.numpy())[0]
    assert np.abs(plain - expected).max() > 1e-2


@pytest.mark.slow  # importing peft and transformers is most of it
@pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning"
)  # peft asks transformers for it
def test_peft_reads_our_adapter(base, tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    from codegen2.checkpoint.convert import convert

    model = load_model(base)
    add_lora(model, 4, 8.0, 0)
    for name, p in model.named_parameters():
        if name.endswith("lora_B"):
            p.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(3))
    write_adapter(tmp_path / "adapter", additions(model), 8.0, "base")
    convert(base, tmp_path / "hf", "hf")
    theirs = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "hf"), tmp_path / "adapter"
    )
    torch.testing.assert_close(theirs.eval()(IDS).logits, model(IDS), atol=1e-4, rtol=1e-4)


def test_foreign_adapters_are_refused(base, tmp_path):
    model = with_adapter()
    write_adapter(tmp_path / "a", additions(model), 8.0, "base")
    other = ModelConfig(n_ctx=128, n_embd=32, n_layer=2, n_head=4, rotary_dim=8)
    with pytest.raises(ValueError, match="has shape"):
        read_adapter(tmp_path / "a", other)
    path = tmp_path / "a" / "adapter_config.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps(said | {"use_dora": True}))
    with pytest.raises(ValueError, match="use_dora is True"):
        read_adapter(tmp_path / "a", SHAPE)
    with pytest.raises(ValueError, match="not found"):
        load(base, adapter=tmp_path / "none", engine="reference")


def test_rounding_gives_a_grid_that_rounding_keeps():
    w = torch.randn(48, 96, generator=torch.Generator().manual_seed(0))
    w[0, :32] = 0
    on_grid = round_int4(w)
    assert torch.equal(round_int4(on_grid), on_grid)
    assert 0 < (on_grid - w).abs().max() < 0.7
    widest = on_grid.view(48, 3, 32).abs().amax(-1)
    levels = on_grid.view(48, 3, 32) / (widest.clamp_min(1e-9) / 8)[..., None]
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)


def test_the_gradient_passes_the_rounding():
    model = CodeGen2(SHAPE)
    model.init_weights(torch.Generator().manual_seed(1))
    plain = model(IDS)
    quantise_layers(model)
    rounded = model(IDS)
    assert not torch.equal(plain, rounded)
    rounded.square().sum().backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for n, p in model.named_parameters() if p.ndim == 2
    )


def test_a_model_trained_for_int4_loses_nothing_when_packed(tmp_path, monkeypatch):
    monkeypatch.setenv("CODEGEN2_CACHE", str(tmp_path / "cache"))
    train(small(qat="int4", qat_from_step=1), DOCS, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "model")
    network = load_model(tmp_path / "model")
    for name, p in network.named_parameters():
        if ".h." in name and p.ndim == 2:
            assert torch.equal(round_int4(p.data), p.data), name
    exact = load(tmp_path / "model", engine="native", dtype="float32").engine.hidden(IDS.numpy())
    packed = load(tmp_path / "model", engine="native", dtype="int4").engine.hidden(IDS.numpy())
    # What is left is the rounding of activations to int8 and of the embedding, which is int8.
    assert np.abs(packed - exact).max() < 0.05
    with pytest.raises(ValueError, match="leave the int4 grid"):
        export(tmp_path / "run", tmp_path / "other", dtype="int8")


def repository(folder):
    folder.mkdir()
    for i in range(8):
        body = "\n".join(f"    value_{j} = compute_{j}(value_{j + i}, {i})" for j in range(6))
        (folder / f"module_{i}.py").write_text(f"def function_{i}():\n{body}\n    return value_0\n")
    (folder / "secret.py").write_text("token = 'not tracked by git, never read'\n")
    (folder / "blob.py").write_bytes(b"\xff\xfe")
    git = ["git", "-C", str(folder)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", *(f"module_{i}.py" for i in range(8)), "blob.py"], check=True)
    return folder


def test_only_tracked_files_are_read_and_the_split_is_stable(tmp_path):
    folder = repository(tmp_path / "repo")
    files, dropped = read_repository(folder)
    assert [f.path for f in files] == [f"module_{i}.py" for i in range(8)]
    assert dropped == {"not UTF-8": 1}
    learned, held = split_files(files, 0.3, 0)
    assert learned and held and len(learned) + len(held) == 8
    kept = {f.path for f in held} - {files[0].path}
    assert kept <= {f.path for f in split_files(files[1:], 0.3, 0)[1]} | {files[0].path}
    with pytest.raises(ValueError, match="at least 2"):
        split_files(files[:1], 0.3, 0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [[], ["--lora", "2"]])
def test_finetune_end_to_end(base, tmp_path, kind, capsys):
    folder = repository(tmp_path / "repo")
    arguments = [
        "finetune", str(folder), "--model", str(base), "--out", str(tmp_path / "out"), "--holes", "4",
        "--seq-len", "64",
        "--batch", "2", "--epochs", "1", "--json", *kind,
    ]  # fmt: skip
    assert main([*arguments, "--max-seconds", "0.01"]) == 0
    stopped = json.loads(capsys.readouterr().out)
    assert stopped["steps"] < stopped["of_steps"]
    assert stopped["holes"] == 1  # there was time for no more
    assert main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["steps"] == result["of_steps"]
    assert result["bits_per_byte_after"] < result["bits_per_byte_before"]
    assert result["exact_match_before"]["n"] == result["holes"]
    assert (tmp_path / "out" / ("adapter_config.json" if kind else "model.safetensors")).is_file()
    again = {"adapter": tmp_path / "out"} if kind else {}
    model = load(base if kind else tmp_path / "out", engine="reference", **again)
    assert model.score("x = 1\n").bits_per_byte > 0


def slower(monkeypatch, now):
    """Let the parts of a run take seconds of a clock that nothing else moves."""

    parts = [
        (finetune, "load_model", 2.0), (Model, "infill", 2.0), (loop, "_optimizer_step", 2.0),
        (loop, "write_state", 3.0), (finetune, "write_result", 3.0),
    ]  # fmt: skip
    for owner, name, seconds in parts:
        train_tiny.takes(monkeypatch, now, owner, name, seconds)


def test_max_seconds_counts_all_of_it_and_leaves_a_result(base, tmp_path, monkeypatch, capsys):
    repository(tmp_path / "repo")
    now = [0.0]
    slower(monkeypatch, now)
    arguments = [
        "finetune", str(tmp_path / "repo"), "--model", str(base), "--out", str(tmp_path / "out"), "--holes", "12",
        "--seq-len", "64", "--batch", "1", "--epochs", "100", "--held-out", "0.3", "--lora", "2", "--json",
    ]  # fmt: skip

    def run(max_seconds):
        args = build_parser().parse_args([*arguments, "--max-seconds", str(max_seconds)])
        started = now[0]
        assert finetune.run_finetune(args, started, lambda: now[0]) == 0
        return now[0] - started, json.loads(capsys.readouterr().out)

    # 2 of loading, 3 of 6 holes; 12 are kept for what follows the training: the result, and the same holes.
    took, first = run(24)
    assert (took, first["holes"], first["steps"]) == (24.0, 3, 1)
    assert first["steps"] < first["of_steps"]
    assert (tmp_path / "out" / "adapter_config.json").is_file()
    took, second = run(40)  # the other holes, and on with the training
    assert (took, second["holes"], second["steps"]) == (40.0, 6, 7)
    took, third = run(1)  # no time for anything; a result there is
    assert (took, third["holes"], third["steps"]) == (7.0, 1, 7)


def test_scores_are_known_again_unless_something_changed(tmp_path):
    path, judgement = tmp_path / "before.json", finetune.Judgement([1.0, 0.0], [3.25])
    finetune._keep(path, "of these", judgement, 7.5)
    assert finetune._known(path, "of these") == (judgement, 7.5)
    nothing = (finetune.Judgement(), 0.0)
    assert finetune._known(path, "of others") == nothing
    good = path.read_bytes()
    damages = [good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :] for at in range(len(good) - 1)]
    damages += [good[:-2], b"", b"[]", b"{}", good.replace(b"3.25", b"2.25")]
    for bad in damages:
        path.write_bytes(bad)
        assert finetune._known(path, "of these") == nothing


def test_two_do_not_finetune_into_one_folder(base, tmp_path, capsys):
    repository(tmp_path / "repo")
    with only_one(tmp_path / "out", "wait"):
        assert (
            main(["finetune", str(tmp_path / "repo"), "--model", str(base), "--out", str(tmp_path / "out")])
            == 2
        )
    assert f"{tmp_path / 'out'}: process " in capsys.readouterr().err
