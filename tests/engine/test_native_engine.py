"""The compiled engine: equal to the reference, to its scalar twin and, bit by bit, to itself however work is cut."""

import ctypes
import json
import os
import subprocess
import sys
import threading
import time

import native_twin
import numpy as np
import pytest
from tiny import CONFIG, pack_model, random_engine, random_weights, reference_engine, shapes

from codegen2 import native
from codegen2.config import EOT, ModelConfig
from codegen2.engine import native as engine_module
from codegen2.engine.native import NativeEngine, choose_instruction_set, default_threads, instruction_sets
from codegen2.generation.sampling import Cancelled

# Heads of 16, of no multiple of 32, and of 64; a vocabulary and a width that fill no panel or block; tied and not.
CONFIGS = {
    "heads of 16": ModelConfig(vocab_size=300, n_ctx=600, n_embd=64, n_layer=2, n_head=4, rotary_dim=8),
    "heads of 48": ModelConfig(vocab_size=333, n_ctx=600, n_embd=144, n_layer=2, n_head=3, rotary_dim=20),
    "tied": ModelConfig(vocab_size=512, n_ctx=600, n_embd=128, n_layer=3, n_head=2, tie_word_embeddings=True),
}


def on_tiles(isa, kind, tokens):
    """Return whether a row of so many tokens goes on matrix instructions, which round over other columns."""
    return isa == "amx" and kind in ("int8", "int4") and tokens > 16


def linear(kind, w, x, floating=0):
    """Return x (M, K) times w (N, K), packed as `kind`, by the chosen instruction set, and the packed (data, scale)."""
    n, k = w.shape
    data, scale = native.pack(kind, w)
    matrix = native.Matrix(
        data.ctypes.data, None if scale is None else scale.ctypes.data, native.KINDS.index(kind), n, k
    )
    y = np.empty((len(x), n), np.float32)
    assert not native.library().cg2_linear(
        ctypes.byref(matrix), native.address(x), len(x), floating, native.address(y)
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


def ids_for(config, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, config.vocab_size, shape)


@pytest.mark.torch
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kind", native.KINDS)
def test_float_activations_equal_the_reference_on_the_same_weights(name, kind):
    config = CONFIGS[name]
    weights = random_weights(config, spread=0.1)
    ours = NativeEngine(pack_model(config, weights, kind), activations="float32", threads=2)
    theirs = reference_engine(config, dequantized(config, weights, kind))
    ids = ids_for(config, 2, 290)  # more than a block of keys
    np.testing.assert_allclose(ours.logits(ids), theirs.logits(ids), atol=1e-3)
    np.testing.assert_allclose(ours.hidden(ids), theirs.hidden(ids), atol=1e-3)
    np.testing.assert_allclose(ours.token_logprobs(ids), theirs.token_logprobs(ids), atol=1e-3)


@pytest.mark.torch
def test_quantised_activations_are_near_the_reference():
    config = CONFIGS["tied"]
    weights = random_weights(config, spread=0.1)
    theirs = reference_engine(config, weights).logits(ids_for(config, 1, 300))
    for kind, most in (("int8", 0.1), ("int4", 0.8)):
        ours = NativeEngine(pack_model(config, weights, kind), threads=2).logits(ids_for(config, 1, 300))
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
        if not floating and on_tiles(name, kind, m):
            continue  # test_tiles_equal_their_twin
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
    [(17, 16, 64), (31, 50, 100), (32, 33, 512), (33, 16, 513), (48, 300, 1000), (530, 33, 2048)],
)
def test_tiles_equal_their_twin(kind, m, n, k):
    rng = np.random.default_rng(m * n * k)
    w = (rng.normal(0, 0.1, (n, k)) * rng.lognormal(0, 1, (n, 1))).astype(np.float32)
    x = (rng.normal(0, 1, (m, k)) * rng.lognormal(0, 1, (m, 1))).astype(np.float32)
    w[0] = x[1] = 0.0
    x[2, 5] = 1000.0  # an outlier costs the columns of its span, and no other's
    choose_instruction_set("amx")
    y, data, scale = linear(kind, w, x)
    choose_instruction_set(None)
    size = np.abs(x).astype(np.float64) @ np.abs(w).astype(np.float64).T
    assert np.all(np.abs(y - native_twin.linear_on_tiles(kind, data, scale, n, x)) <= 1e-5 * size + 1e-9)
    exact = x.astype(np.float64) @ native_twin.unpack(kind, data, scale, n, k).astype(np.float64).T
    rest = np.arange(m) != 2
    assert np.sqrt(np.mean((y - exact)[rest] ** 2)) <= 0.015 * np.sqrt(np.mean(exact[rest] ** 2))


@pytest.mark.slow
def test_tiles_on_a_machine_without_them(tmp_path):
    """Build the library with functions in place of the instructions, and run this file's tests of tiles by it."""
    import build_native
    from test_build import processor_flags

    if "avx512_bf16" not in processor_flags():
        pytest.skip("needs a processor with AVX-512 and bfloat16")
    out = tmp_path / native.library_path().name
    build_native.build(out, flags=["-DCODEGEN2_AMX_EMULATED"])
    env = {**os.environ, "CODEGEN2_NATIVE_LIBRARY": str(out)}
    chosen = "tiles_equal or amx or agree or threads or damaged or cancelled"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", chosen]
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
            found[isa] = engine.logits(ids_for(config, 1, 40))
        choose_instruction_set(None)
        for isa, logits in found.items():
            # Rounding differs where one has no fused multiply-add, and a rounded activation may fall to the other side;
            # on tiles, activations share their scale with others.
            most = 2e-2 if on_tiles(isa, kind, 40) else 2e-3
            assert np.abs(logits - found["scalar"]).mean() < most * found["scalar"].std(), isa


@pytest.mark.parametrize("kind", native.KINDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_rows_logits_do_not_depend_on_the_rows_beside_it(name, kind, isa):
    """Prefill at once, in pieces, in single steps, cut back and again, in a batch with padding: the same bits."""
    config = CONFIGS[name]
    engine = random_engine("native", config, spread=0.1, kind=kind)
    if isa == "amx" and kind in ("int8", "int4"):
        check_rows_on_tiles(config, engine)
        return
    n = 40 if isa == "scalar" else 310
    ids = ids_for(config, 1, n + 20)
    whole = engine.logits(ids)[0]
    cache = engine.new_cache(1, config.n_ctx)
    assert np.array_equal(engine.prefill(ids[:, :n], cache)[0], whole[n - 1])
    for width in (1, 2, 3, 5, 8):
        cache.truncate(n)
        assert np.array_equal(engine.extend(ids[:, n : n + width], cache)[0], whole[n : n + width])
    cache.truncate(n)
    for i in range(n, n + 5):
        assert np.array_equal(engine.decode_step(ids[:, i], cache)[0], whole[i])
    batch = np.zeros((3, n), np.int64)
    pad = np.array([0, 7, n - 1])
    for b in range(3):
        batch[b, pad[b] :] = ids[0, : n - pad[b]]
    cache = engine.new_cache(3, n + 3)
    logits = engine.prefill(batch, cache, pad)
    for b in range(3):
        assert np.array_equal(logits[b], whole[n - 1 - pad[b]])
    step = engine.decode_step(np.array([ids[0, n - p] for p in pad]), cache)
    chosen = cache.select_rows([2, 0, 0])
    assert chosen.length == n + 1
    again = engine.decode_step(np.array([ids[0, 2], ids[0, n + 1], ids[0, n + 1]]), chosen)
    for b in range(3):
        assert np.array_equal(step[b], whole[n - pad[b]])
    assert np.array_equal(again[0], whole[2])
    assert np.array_equal(again[1], whole[n + 1])
    assert np.array_equal(again[2], whole[n + 1])


def check_rows_on_tiles(config, engine):
    """Check the same of rows on tiles among each other, and that up to 16 tokens are AVX-512's bit by bit."""
    n = 310
    ids = ids_for(config, 1, n + 20)
    whole = engine.logits(ids)[0]
    for cuts in ([n], [17, 100], [32, 256, n]):
        cache = engine.new_cache(1, config.n_ctx)
        pieces = [engine.extend(piece, cache)[0] for piece in np.split(ids, cuts, axis=1)]
        assert np.array_equal(np.concatenate(pieces), whole)
    cache.truncate(n)  # behind it, one at a time or up to 16 at once
    steps = np.array([engine.decode_step(ids[:, i], cache)[0] for i in range(n, n + 16)])
    for width in (2, 7, 12, 16):
        cache.truncate(n)
        assert np.array_equal(engine.extend(ids[:, n : n + width], cache)[0], steps[:width])
    cache.truncate(n)
    choose_instruction_set("avx512vnni")
    assert np.array_equal(engine.extend(ids[:, n : n + 16], cache)[0], steps)
    few = engine.logits(ids[:, :16])[0]
    choose_instruction_set("amx")
    assert np.array_equal(engine.logits(ids[:, :16])[0], few)
    pad = np.array([0, 7, n - 5, n - 1])  # two of many tokens beside two of few
    batch = np.zeros((4, n), np.int64)
    for b in range(4):
        batch[b, pad[b] :] = ids[0, : n - pad[b]]
    logits = engine.prefill(batch, engine.new_cache(4, n), pad)
    for b, right in enumerate([whole[n - 1], whole[n - 8], few[4], few[0]]):
        assert np.array_equal(logits[b], right)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_threads_do_not_change_a_bit(kind):
    engine = random_engine("native", CONFIGS["tied"], spread=0.1, kind=kind)
    ids = ids_for(CONFIGS["tied"], 2, 100)
    lib = native.library()
    found = []
    for n in (1, 2, 3, 5):
        assert lib.cg2_set_threads(n) == n
        found.append(engine.logits(ids))
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
        ids = ids_for(config, 1, 50)
        if "amx" in instruction_sets():  # steps are AVX-512's: test_a_rows_logits has tiles
            choose_instruction_set("amx")
            assert np.isfinite(engine.logits(ids)).all()
            choose_instruction_set("avx512vnni")
        whole = engine.logits(ids)[0]
        cache = engine.new_cache(1, 50)
        steps = [
            engine.prefill(ids[:, :30], cache)[0],
            *(engine.decode_step(ids[:, i], cache)[0] for i in range(30, 50)),
        ]
        choose_instruction_set(None)
        assert np.isfinite(whole).all()
        assert np.array_equal(steps, whole[29:])


# ---- what a person can get wrong


def test_ids_and_lengths_out_of_range():
    engine = random_engine(config=CONFIG)
    cache = engine.new_cache(1, 8)
    with pytest.raises(ValueError, match="token id 51200 is outside"):
        engine.prefill(np.array([[3, 51200]]), cache)
    with pytest.raises(ValueError, match="token id -1 is outside"):
        engine.prefill(np.array([[-1]]), cache)
    assert cache.length == 0
    with pytest.raises(ValueError, match="do not fit 8"):
        engine.prefill(np.zeros((1, 9), np.int64), cache)
    with pytest.raises(ValueError, match="257 tokens do not fit 256"):
        engine.hidden(np.zeros((1, 257), np.int64))
    with pytest.raises(ValueError, match=r"capacity 257 is outside 1\.\.256"):
        engine.new_cache(1, 257)
    with pytest.raises(ValueError, match="cannot truncate to 1"):
        cache.truncate(1)
    with pytest.raises(ValueError, match=r"rows \[1\]"):
        cache.select_rows([1])


def test_a_head_size_that_does_not_fit_is_refused():
    config = ModelConfig(vocab_size=100, n_ctx=64, n_embd=24, n_layer=1, n_head=3, rotary_dim=8)
    with pytest.raises(ValueError, match=r"multiple of 16 .*n_head 3\); choose the reference engine"):
        random_engine("native", config)


@pytest.mark.parametrize("wrong", [0, 257, "two", True])
def test_threads_are_checked(wrong):
    with pytest.raises(ValueError, match="threads must be a whole number from 1 to 256"):
        engine_module.check_threads(wrong)


def test_threads_follow_affinity_and_environment(monkeypatch):
    monkeypatch.setenv("CODEGEN2_THREADS", "3")
    assert default_threads() == 3
    monkeypatch.setenv("CODEGEN2_THREADS", "many")
    with pytest.raises(ValueError, match="'many'"):
        default_threads()
    monkeypatch.delenv("CODEGEN2_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4, 5, 6}, raising=False)
    monkeypatch.setattr(engine_module, "_cgroup_cores", lambda: None)
    assert default_threads() == 3
    monkeypatch.setattr(engine_module, "_cgroup_cores", lambda: 1.5)
    assert default_threads() == 2


def test_an_unknown_instruction_set():
    with pytest.raises(ValueError, match=r"'mmx' is not here; choose one of .*scalar"):
        choose_instruction_set("mmx")


def test_a_missing_library_says_what_to_do(tmp_path):
    code = "import codegen2; codegen2.load()"
    env = {**os.environ, "CODEGEN2_NATIVE_LIBRARY": str(tmp_path / "no.so"), "CODEGEN2_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode
    assert native.NOT_BUILT in done.stderr
    (tmp_path / "no.so").write_bytes(b"not a library")
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert "cannot be loaded" in done.stderr


# ---- cancelling, threads of the caller, processes


def test_a_call_in_progress_is_cancelled_and_the_cache_stays():
    config = ModelConfig(vocab_size=512, n_ctx=2048, n_embd=512, n_layer=8, n_head=8)
    engine = random_engine("native", config, spread=0.02, kind="int8")
    ids = ids_for(config, 1, 2000)
    cache = engine.new_cache(1, 2048)
    engine.prefill(ids[:, :10], cache)
    expected = engine.extend(ids[:, 10:12], cache)
    cache.truncate(10)
    cancel = threading.Event()
    timer = threading.Timer(0.01, cancel.set)
    timer.start()
    with pytest.raises(Cancelled), engine.cancelled_by(cancel):
        for _ in range(100):
            cache.truncate(10)
            engine.prefill(ids[:, 10:], cache)
    timer.join()
    cache.truncate(10)
    assert np.array_equal(engine.extend(ids[:, 10:12], cache), expected)  # not cancelled any more, and right


def test_two_threads_may_call_at_once():
    engine = random_engine("native", CONFIGS["tied"], spread=0.1, kind="int8")
    ids = [ids_for(CONFIGS["tied"], 1, 60, seed=s) for s in range(4)]
    expected = [engine.logits(i) for i in ids]
    found: dict[int, bool] = {}

    def ask(which):
        found[which] = all(np.array_equal(engine.logits(ids[which]), expected[which]) for _ in range(20))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(timeout=60)
    assert found == dict.fromkeys(range(4), True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_computes_too():
    engine = random_engine("native", CONFIGS["tied"], spread=0.1, kind="int8")
    ids = ids_for(CONFIGS["tied"], 1, 20)
    expected = engine.logits(ids)
    code = 1
    pid = os.fork()
    if pid == 0:
        code = 0 if np.array_equal(engine.logits(ids), expected) else 2
        os._exit(code)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.02)
    os.kill(pid, 9)
    pytest.fail("the child hangs")


# ---- the whole main job, without PyTorch


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
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    raw, holes, choices, bits, shape = json.loads(done.stdout)
    assert raw
    assert (holes, choices, shape) == (2, 2, [256])
    assert 0.5 < bits < 8


@pytest.mark.torch
def test_the_box_is_nearly_the_same_in_int8():
    import codegen2

    ours, theirs = codegen2.load(engine="native", dtype="int8"), codegen2.load(engine="reference")
    text = "import os\n\n\ndef read(path):\n    with open(path) as f:\n        return f.read()\n"
    ids = np.array([[EOT, *ours.tokenizer.encode(text)]])
    a, b = ours.engine.logits(ids)[0], theirs.engine.logits(ids)[0]
    p = np.exp(b - b.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    q = a - a.max(-1, keepdims=True)
    q -= np.log(np.exp(q).sum(-1, keepdims=True))
    kl = (p * (np.log(p + 1e-30) - q)).sum(-1).mean()
    assert kl < 5e-3  # benchmarks/quantization.py measures it on files
    assert set(shapes(ours.engine.config)) == set(theirs.engine.model.state_dict()) - {"lm_head.weight"}


@pytest.mark.parametrize("kind", native.KINDS)
def test_damaged_values_crash_nothing(kind):
    """Whatever bytes stand where weights and scales should be: a result or an error, and the next model is right."""
    from codegen2.api import Model
    from codegen2.text.tokenizer import Tokenizer

    rng = np.random.default_rng(3)
    for _ in range(5):
        packed = pack_model(CONFIG, random_weights(CONFIG), kind)
        for matrix in packed.matrices.values():
            matrix.data[...] = rng.integers(0, 256, matrix.data.shape, dtype=np.uint8)
            if matrix.scale is not None:
                matrix.scale[::7] = rng.choice([np.nan, np.inf, -1e38, 1e-45])
        engine = NativeEngine(packed, threads=2)
        engine.logits(ids_for(CONFIG, 2, 30))
        with pytest.raises(ValueError, match="logits are no numbers"):
            Model(engine, Tokenizer()).complete("x = 1", max_new_tokens=3)
