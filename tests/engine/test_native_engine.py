"""The compiled engine: equal to the reference, to its scalar twin and, bit by bit, to itself however work is cut."""

import ctypes
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import native_twin
import numpy as np
import pytest
from tiny import CONFIG, box, logits_of, pack_model, random_engine, random_weights, reference_engine, shapes

from codegen2 import native
from codegen2.config import EOT, ModelConfig
from codegen2.engine import system
from codegen2.engine.native import NativeEngine
from codegen2.engine.protocol import Cancelled, Piece
from codegen2.native import choose_instruction_set, instruction_sets

# Heads of 16, of no multiple of 32, and of 64; a vocabulary and a width that fill no panel or block; tied and not.
CONFIGS = {
    "heads of 16": ModelConfig(vocab_size=300, n_ctx=600, n_embd=64, n_layer=2, n_head=4, rotary_dim=8),
    "heads of 48": ModelConfig(vocab_size=333, n_ctx=600, n_embd=144, n_layer=2, n_head=3, rotary_dim=20),
    "tied": ModelConfig(vocab_size=512, n_ctx=600, n_embd=128, n_layer=3, n_head=2, tie_word_embeddings=True),
}


def on_tiles(isa, kind):
    """Return whether prompts go on matrix instructions, which round over other columns."""
    return isa == "amx" and kind in ("int8", "int4")


def linear(kind, w, x, arithmetic=0):
    """Return x (M, K) times w (N, K), packed as `kind`, by the chosen instruction set, and the packed (data, scale).

    arithmetic: 0 a decode step's, 1 with float activations, 2 a prompt's.
    """
    n, k = w.shape
    data, scale = native.pack(kind, w)
    matrix = native.Matrix(
        data.ctypes.data, None if scale is None else scale.ctypes.data, native.KINDS.index(kind), n, k
    )
    y = np.empty((len(x), n), np.float32)
    assert not native.library().cg2_linear(
        ctypes.byref(matrix), native.address(x), len(x), arithmetic, native.address(y)
    )
    return y, data, scale


@pytest.fixture(params=instruction_sets())
def isa(request):
    choose_instruction_set(request.param)
    yield request.param
    choose_instruction_set(None)


def dequantized(config, weights, kind):
    """Return float32 weights that are exactly what the packed ones stand for."""
    found = {}
    for name, w in weights.items():
        if w.ndim == 1:
            found[name] = w
            continue
        n, k = w.shape
        data, scale = native.pack(kind, w)
        matrix = native.Matrix(
            data.ctypes.data, None if scale is None else scale.ctypes.data, native.KINDS.index(kind), n, k
        )
        out = np.empty((k, n), np.float32)
        assert (
            native.library().cg2_linear(
                ctypes.byref(matrix), native.address(np.eye(k, dtype=np.float32)), k, 1, native.address(out)
            )
            == 0
        )
        found[name] = np.ascontiguousarray(out.T)
    return found


# All pairs; the default run has each config and each kind.
EACH_ONCE = [
    pytest.param(name, kind, marks=() if k in (i, i + len(CONFIGS)) else pytest.mark.slow)
    for i, name in enumerate(CONFIGS)
    for k, kind in enumerate(native.KINDS)
]


def ids_for(config, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, config.vocab_size, shape)


@pytest.mark.torch
@pytest.mark.parametrize(("name", "kind"), EACH_ONCE)
def test_float_activations_equal_the_reference_on_the_same_weights(name, kind):
    config = CONFIGS[name]
    weights = random_weights(config, spread=0.1)
    ours = NativeEngine(pack_model(config, weights, kind), activations="float32", threads=2)
    theirs = reference_engine(config, dequantized(config, weights, kind))
    ids = ids_for(config, 2, 290)  # more than a block of keys
    most = 2e-5 if kind == "float32" else 1e-3  # its keys and values are float32, the others' float16
    np.testing.assert_allclose(logits_of(ours, ids), logits_of(theirs, ids), atol=most)
    np.testing.assert_allclose(ours.hidden(ids), theirs.hidden(ids), atol=most)
    np.testing.assert_allclose(ours.token_logprobs(ids), theirs.token_logprobs(ids), atol=most)


@pytest.mark.torch
def test_quantised_activations_are_near_the_reference():
    config = CONFIGS["tied"]
    weights = random_weights(config, spread=0.1)
    theirs = logits_of(reference_engine(config, weights), ids_for(config, 1, 300))
    for kind, most in (("int8", 0.1), ("int4", 0.8)):
        ours = logits_of(NativeEngine(pack_model(config, weights, kind), threads=2), ids_for(config, 1, 300))
        assert np.sqrt(np.mean((ours - theirs) ** 2)) < most * theirs.std()


@pytest.mark.parametrize("kind", native.KINDS)
@pytest.mark.parametrize("floating", [0, 1])
@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 16, 64), (1, 100, 100), (3, 48, 192), (5, 17, 65), (13, 130, 320), (30, 64, 1000)]
)
def test_kernels_equal_their_scalar_twins(kind, floating, m, n, k):
    rng = np.random.default_rng(m * n * k)
    w = rng.normal(0, 0.1, (n, k)).astype(np.float32)
    x = (rng.normal(0, 1, (m, k)) * rng.lognormal(0, 1, (m, 1))).astype(np.float32)
    x[0, : k // 2] = 0.0  # whole groups of nothing
    results = {}
    for name in instruction_sets():
        choose_instruction_set(name)
        results[name], _, _ = linear(kind, w, x, floating)
    choose_instruction_set(None)
    size = (
        np.abs(x).astype(np.float64) @ np.abs(w).astype(np.float64).T
    )  # what rounding errors are measured against
    for name, y in results.items():
        assert np.all(np.abs(y - results["scalar"]) <= 1e-5 * size + 1e-9), name
    # And the twin equals the plain product, up to what was rounded away.
    tolerance = {"float32": 1e-5, "bfloat16": 5e-3, "int8": 2e-2, "int4": 2e-1}[kind]
    assert np.all(
        np.abs(results["scalar"] - x.astype(np.float64) @ w.T.astype(np.float64)) <= tolerance * size + 1e-6
    )


@pytest.mark.skipif("amx" not in instruction_sets(), reason="needs AMX, or a library that emulates it")
@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize(
    ("m", "n", "k"),
    [(3, 16, 64), (31, 50, 100), (32, 33, 512), (33, 16, 513), (48, 300, 1000), (530, 33, 2048)],
)
def test_tiles_equal_their_twin(kind, m, n, k):
    rng = np.random.default_rng(m * n * k)
    w = (rng.normal(0, 0.1, (n, k)) * rng.lognormal(0, 1, (n, 1))).astype(np.float32)
    x = (rng.normal(0, 1, (m, k)) * rng.lognormal(0, 1, (m, 1))).astype(np.float32)
    w[0] = x[1] = 0.0
    x[2, 5] = 1000.0  # an outlier costs the columns of its span, and no other's
    choose_instruction_set("amx")
    y, data, scale = linear(kind, w, x, 2)
    alone = [linear(kind, w, x[i : i + 1], 2)[0][0] for i in range(3)]
    choose_instruction_set(None)
    assert np.array_equal(alone, y[:3])
    size = np.abs(x).astype(np.float64) @ np.abs(w).astype(np.float64).T
    assert np.all(np.abs(y - native_twin.linear_on_tiles(kind, data, scale, n, x)) <= 1e-5 * size + 1e-9)
    exact = x.astype(np.float64) @ native_twin.unpack(kind, data, scale, n, k).astype(np.float64).T
    rest = np.arange(m) != 2
    assert np.sqrt(np.mean((y - exact)[rest] ** 2)) <= 0.015 * np.sqrt(np.mean(exact[rest] ** 2))


@pytest.mark.slow
def test_tiles_on_a_machine_without_them(tmp_path):
    """Build the library with functions in place of the instructions, and run the tests of this folder by it."""
    import build_native
    from test_build import processor_flags

    if "avx2" not in processor_flags():
        pytest.skip("needs a processor with AVX2")
    real = "avx512_bf16" in processor_flags()  # then only the tiles are functions
    out = tmp_path / native.library_path().name
    build_native.build(out, flags=["-DCODEGEN2_AMX_EMULATED" if real else build_native.EMULATED])
    env = {**os.environ, "CODEGEN2_NATIVE_LIBRARY": str(out)}
    chosen = "tiles or amx or agree or threads or damaged or cancelled or likelihoods or random"
    chosen += " or (test_forward and native)"
    files = [__file__, str(Path(__file__).with_name("test_forward.py"))]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", chosen]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "skipped" not in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("name", CONFIGS)
def test_instruction_sets_agree(name):
    config = CONFIGS[name]
    for kind in ("int8", "int4"):
        engine = random_engine("native", config, spread=0.1, kind=kind)
        found = {}
        for isa in instruction_sets():
            choose_instruction_set(isa)
            found[isa] = logits_of(engine, ids_for(config, 1, 40))
        choose_instruction_set(None)
        for isa, logits in found.items():
            # Rounding differs where one has no fused multiply-add, and a rounded activation may fall to the other side;
            # on tiles, activations share their scale with others.
            most = 2e-2 if on_tiles(isa, kind) else 2e-3
            assert np.abs(logits - found["scalar"]).mean() < most * found["scalar"].std(), isa


def read(engine, cache, row, start, ids, prompt, n_logits=None):
    """Return the logits after the last n_logits (None: all) of ids, read as a prompt or as decode steps."""
    n = len(ids)
    return engine.forward([Piece(row, start, ids, n if n_logits is None else n_logits, n * prompt)], cache)[0]


@pytest.mark.parametrize(("name", "kind"), EACH_ONCE)
def test_a_rows_logits_do_not_depend_on_the_rows_beside_it(name, kind, isa):
    """A prompt at once and in pieces, then decode steps, one by one, together, and beside other rows: the same bits."""
    config = CONFIGS[name]
    engine = random_engine("native", config, spread=0.1, kind=kind)
    assert engine.one_arithmetic == (not on_tiles(isa, kind))
    n = 40 if isa == "scalar" else 310
    ids = ids_for(config, n + 20).tolist()
    one, most = engine.new_cache(1, n + 20), config.n_ctx
    whole = read(engine, one, 0, 0, ids[:n], True)
    for cuts in ([n], [1, 2, 3, 8], [5, 21, 37, n - 1], [17, 32]):
        cache, start, got = engine.new_cache(2, most), 0, []
        for end in [*cuts, n]:
            got.append(read(engine, cache, 1, start, ids[start:end], True) if start < end else whole[:0])
            start = end
        assert np.array_equal(np.concatenate(got), whole), cuts
    steps = np.concatenate([read(engine, one, 0, i, ids[i : i + 1], False) for i in range(n, n + 8)])
    if engine.one_arithmetic:
        right = read(engine, engine.new_cache(1, n + 8), 0, 0, ids[: n + 8], True)
        assert np.array_equal(np.concatenate((whole, steps)), right)
    for width in (2, 3, 5, 8):
        assert np.array_equal(read(engine, one, 0, n, ids[n : n + width], False), steps[:width])
    # Prompts of many and of few tokens beside decode steps and a prompt that draft tokens follow.
    cache = engine.new_cache(6, most)
    ends = [n, 1, 3, 18, n - 5, n]
    read(engine, cache, 5, 0, ids[:n], True)
    read(engine, cache, 3, 0, ids[:17], True)
    pieces = [
        Piece(0, 0, ids[:n], 1, n), Piece(5, n, ids[n : n + 1], 1, 0), Piece(1, 0, ids[:1], 1, 1),
        Piece(2, 0, ids[:3], 2, 3), Piece(3, 17, ids[17:18], 1, 1), Piece(4, 0, ids[: n - 5], 0, n - 5),
    ]  # fmt: skip
    for piece, logits in zip(pieces, engine.forward(pieces, cache), strict=True):
        right = steps[:1] if piece.row == 5 else whole[ends[piece.row] - piece.n_logits : ends[piece.row]]
        assert np.array_equal(logits, right), piece.row
    mixed = engine.forward(
        [Piece(4, n - 5, ids[n - 5 : n + 3], 6, 5), Piece(0, n, ids[n : n + 2], 2, 0)], cache
    )
    assert np.array_equal(mixed[0], np.concatenate((whole[n - 3 :], steps[:3])))
    assert np.array_equal(mixed[1], steps[:2])
    engine.copy_row(cache, 4, 2, n)
    assert np.array_equal(read(engine, cache, 2, n, ids[n : n + 3], False), steps[:3])


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_likelihoods_are_a_prompts(kind, isa):
    """Hidden states, log-probabilities and a prompt's logits come of one arithmetic."""
    config = CONFIGS["tied"]
    engine = random_engine("native", config, spread=0.1, kind=kind)
    ids = ids_for(config, 24)
    got = engine.token_logprobs(ids[None])[0]
    assert np.array_equal(engine.token_logprobs(ids[None, :5])[0], got[:4])
    logits = read(engine, engine.new_cache(1, 24), 0, 0, ids.tolist(), True).astype(np.float64)
    exact = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(got, exact[np.arange(23), ids[1:]], atol=1e-4)
    assert np.array_equal(engine.hidden(ids[None, :1])[0], engine.hidden(ids[None])[0, :1])


def test_prompts_and_decode_steps_apart_are_what_they_are_together(monkeypatch):
    """Where one arithmetic would do, two passes give the same bits: what machines with tiles do, on any machine."""
    config = CONFIGS["heads of 48"]
    engine = random_engine("native", config, spread=0.1, kind="float32")
    ids = ids_for(config, 60).tolist()
    pieces = [
        Piece(0, 0, ids[:30], 3, 30),
        Piece(1, 0, ids[:1], 1, 0),
        Piece(2, 0, ids[:9], 4, 6),
        Piece(3, 0, ids, 0, 60),
    ]
    together = engine.forward(pieces, engine.new_cache(4, 60))
    calls, real = [], engine._read
    monkeypatch.setattr(NativeEngine, "one_arithmetic", False)
    monkeypatch.setattr(
        engine, "_read", lambda some, cache, prompt: calls.append((prompt, some)) or real(some, cache, prompt)
    )
    apart = engine.forward(pieces, engine.new_cache(4, 60))
    assert [(prompt, [(p.row, p.start, len(p.tokens)) for p in some]) for prompt, some in calls] == [
        (True, [(0, 0, 30), (2, 0, 6), (3, 0, 60)]),
        (False, [(1, 0, 1), (2, 6, 3)]),
    ]
    for a, b in zip(apart, together, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_threads_do_not_change_a_bit(kind):
    engine = random_engine("native", CONFIGS["tied"], spread=0.1, kind=kind)
    ids = ids_for(CONFIGS["tied"], 2, 100)
    lib = native.library()
    found = []
    for n in (1, 2, 3, 5):
        assert lib.cg2_set_threads(n) == n
        found.append(logits_of(engine, ids))
    lib.cg2_set_threads(2)
    assert all(np.array_equal(found[0], f) for f in found)


def test_random_shapes_stay_finite_and_exact():
    """Many small models of odd shapes: prefill and steps agree, nothing is read beyond what was written."""
    rng = np.random.default_rng(1)
    for _ in range(12):
        head = 16 * int(rng.integers(1, 6))
        heads = int(rng.integers(1, 5))
        config = ModelConfig(
            vocab_size=int(rng.integers(5, 400)), n_ctx=80, n_embd=head * heads, n_layer=int(rng.integers(1, 3)),
            n_head=heads, rotary_dim=2 * int(rng.integers(1, head // 2 + 1)), tie_word_embeddings=bool(rng.integers(2)),
        )  # fmt: skip
        engine = random_engine("native", config, spread=0.1, kind=str(rng.choice(native.KINDS)))
        ids = ids_for(config, 50).tolist()
        whole = read(engine, engine.new_cache(1, 50), 0, 0, ids, True)
        assert np.isfinite(whole).all()
        cache = engine.new_cache(2, 50)
        parts = [read(engine, cache, 1, at, ids[at : at + 6], True) for at in range(0, 50, 6)]
        assert np.array_equal(np.concatenate(parts), whole)
        steps = [read(engine, cache, 1, i, ids[i : i + 1], False)[0] for i in range(30, 50)]
        assert np.array_equal(read(engine, cache, 1, 30, ids[30:], False), steps)
        assert np.array_equal(steps, whole[30:]) or not engine.one_arithmetic


# ---- what a person can get wrong


def test_a_head_size_that_does_not_fit_is_refused():
    config = ModelConfig(vocab_size=100, n_ctx=64, n_embd=24, n_layer=1, n_head=3, rotary_dim=8)
    with pytest.raises(ValueError, match=r"multiple of 16 .*n_head 3\); choose the reference engine"):
        random_engine("native", config)


@pytest.mark.parametrize("wrong", [0, 257, "two", True])
def test_threads_are_checked(wrong):
    with pytest.raises(ValueError, match="threads must be a whole number from 1 to 256"):
        system.check_threads(wrong)


def test_threads_follow_affinity_and_environment(monkeypatch):
    monkeypatch.setenv("CODEGEN2_THREADS", "3")
    assert system.default_threads() == 3
    monkeypatch.setenv("CODEGEN2_THREADS", "many")
    with pytest.raises(ValueError, match="'many'"):
        system.default_threads()
    monkeypatch.delenv("CODEGEN2_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4, 5, 6}, raising=False)
    monkeypatch.setattr(system, "_cgroup_cores", lambda: None)
    assert system.default_threads() == 3
    monkeypatch.setattr(system, "_cgroup_cores", lambda: 1.5)
    assert system.default_threads() == 2


def test_an_unknown_instruction_set():
    with pytest.raises(ValueError, match=r"'mmx' is not here; choose one of .*scalar"):
        choose_instruction_set("mmx")


def test_a_missing_library_says_what_to_do(tmp_path):
    code = (
        "import os, pathlib, codegen2\n"
        "try: codegen2.load()\n"
        "except Exception as e: print(e)\n"
        "pathlib.Path(os.environ['CODEGEN2_NATIVE_LIBRARY']).write_bytes(b'not a library')\n"
        "codegen2.load()\n"
    )
    env = {**os.environ, "CODEGEN2_NATIVE_LIBRARY": str(tmp_path / "no.so"), "CODEGEN2_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode
    assert native.NOT_BUILT in done.stdout
    assert "cannot be loaded" in done.stderr


# ---- cancelling, threads of the caller, processes


def test_a_call_in_progress_is_cancelled_and_the_cache_stays():
    config = ModelConfig(vocab_size=512, n_ctx=2048, n_embd=256, n_layer=4, n_head=4)
    engine = random_engine("native", config, spread=0.02, kind="int8", threads=2)
    ids = ids_for(config, 2000).tolist()
    cache = engine.new_cache(1, 2048)
    read(engine, cache, 0, 0, ids[:10], True)
    expected = read(engine, cache, 0, 10, ids[10:12], False)
    cancel = threading.Event()
    timer = threading.Timer(0.01, cancel.set)
    timer.start()
    with pytest.raises(Cancelled), engine.cancelled_by(cancel):
        for _ in range(100):
            read(engine, cache, 0, 10, ids[10:], True, 1)
    timer.join()
    again = read(engine, cache, 0, 10, ids[10:12], False)
    assert np.array_equal(again, expected)  # not cancelled any more, and right


def test_two_threads_may_call_at_once():
    engine = random_engine("native", CONFIGS["tied"], spread=0.1, kind="int8")
    ids = [ids_for(CONFIGS["tied"], 1, 60, seed=s) for s in range(4)]
    expected = [logits_of(engine, i) for i in ids]
    found: dict[int, bool] = {}

    def ask(which):
        found[which] = all(np.array_equal(logits_of(engine, ids[which]), expected[which]) for _ in range(20))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(timeout=300)
    assert found == dict.fromkeys(range(4), True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_computes_too():
    engine = random_engine("native", CONFIGS["tied"], spread=0.1, kind="int8")
    ids = ids_for(CONFIGS["tied"], 1, 20)
    expected = logits_of(engine, ids)
    code = 1
    pid = os.fork()
    if pid == 0:
        code = 0 if np.array_equal(logits_of(engine, ids), expected) else 2
        os._exit(code)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.02)
    os.kill(pid, 9)
    pytest.fail("the child hangs")


# ---- the whole main job, without PyTorch


@pytest.mark.slow  # the default run's first half is without PyTorch throughout
def test_the_main_job_loads_no_torch(tmp_path):
    code = (
        "import sys, json, codegen2\n"
        "sys.modules['torch'] = None\n"  # importing it raises
        "m = codegen2.load()\n"
        "a = m.infill('def add(a, b):\\n    ', '\\n', max_new_tokens=8)\n"
        "b = m.infill_spans(['x = ', codegen2.HOLE, '\\ny = ', codegen2.HOLE, '\\n'], max_new_tokens=4)\n"
        "c = m.complete('import ', n=2, best_of=3, temperature=0.9, seed=1, max_new_tokens=4)\n"
        "s = m.score('import os\\n')\n"
        "e = m.embed('import os\\n', 'mean')\n"
        "print(json.dumps([a.raw, len(b.choices), len(c.choices), s.bits_per_byte, e.shape]))\n"
    )
    env = {**os.environ, "CODEGEN2_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    raw, holes, choices, bits, shape = json.loads(done.stdout)
    assert raw
    assert (holes, choices, shape) == (2, 2, [256])
    assert 0.5 < bits < 8


@pytest.mark.torch
def test_the_box_is_nearly_the_same_in_int8():
    import codegen2

    ours, theirs = codegen2.load(engine="native", dtype="int8"), box("reference")
    text = "import os\n\n\ndef read(path):\n    with open(path) as f:\n        return f.read()\n"
    ids = np.array([[EOT, *ours.tokenizer.encode(text)]])
    a, b = logits_of(ours.engine, ids)[0], logits_of(theirs.engine, ids)[0]
    p = np.exp(b - b.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    q = a - a.max(-1, keepdims=True)
    q -= np.log(np.exp(q).sum(-1, keepdims=True))
    kl = (p * (np.log(p + 1e-30) - q)).sum(-1).mean()
    assert kl < 5e-3  # benchmarks/quantization.py measures it on files
    assert set(shapes(ours.engine.config)) == set(theirs.engine.model.state_dict()) - {"lm_head.weight"}


@pytest.mark.parametrize("rounds", [1, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", native.KINDS)
def test_damaged_values_crash_nothing(kind, rounds):
    """Whatever bytes stand where weights and scales should be: a result or an error, and the next model is right."""
    from codegen2.api import Model
    from codegen2.text.tokenizer import Tokenizer

    rng = np.random.default_rng(3)
    weights = random_weights(CONFIG)
    for _ in range(rounds):
        packed = pack_model(CONFIG, weights, kind)
        for matrix in packed.matrices.values():
            matrix.data[...] = rng.integers(0, 256, matrix.data.shape, dtype=np.uint8)
            if matrix.scale is not None:
                matrix.scale[::7] = rng.choice([np.nan, np.inf, -1e38, 1e-45])
        engine = NativeEngine(packed, threads=1)
        logits_of(engine, ids_for(CONFIG, 2, 30))
        with pytest.raises(ValueError, match="weights are damaged"):
            Model(engine, Tokenizer()).complete("x = 1", max_new_tokens=3)
