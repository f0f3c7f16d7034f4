"""The worker: the same answers as Model gives, several at once; every way to end early; loading, unloading, dying."""

import asyncio
import threading

import numpy as np
import pytest
from serve_tools import ask, first_of, running, says, until
from tiny import random_engine, random_model

from codegen2.api import Model
from codegen2.config import ModelConfig
from codegen2.generation.sampling import DamagedWeights
from codegen2.generation.worker import Busy, NoModel, Stopping
from codegen2.text.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("small_heap")  # each worker that ends collects garbage
TOK = Tokenizer()
PREFIX = "import os\n\n\ndef read(path):\n    with open(path) as f:\n        "
SUFFIX = "\n\ndef write(path):\n    pass\n"


@pytest.fixture(scope="module")
def model():
    return random_model()


def answers(model, *requests, **options):
    """Submit all at once and return their results."""

    async def run():
        with running(model, **options) as worker:
            return await asyncio.gather(*[worker.submit(r).whole() for r in requests])

    return asyncio.run(run())


def test_answers_are_those_of_the_model_also_together(model):
    sampled = {"max_new_tokens": 7, "temperature": 0.9, "seed": 5}
    requests = [
        ask("a = b\n", max_new_tokens=7),
        ask("x", **sampled, n=3),
        ask("def f(x):\n", **sampled, n=2, best_of=4),
        ask(PREFIX, SUFFIX, max_new_tokens=7, stop=["a", "e"], stop_at="block"),
        ask(PREFIX, SUFFIX, **sampled, n=2, best_of=3),
        ask("", max_new_tokens=5, presence_penalty=1.5, frequency_penalty=0.5, logit_bias={5: -100}),
    ]
    expected = [[c.text for c in model.answer([r])[0].choices] for r in requests]
    together = answers(model, *requests)
    assert [[c.text for c in done.choices] for done in together] == expected
    assert [[c.text for c in answers(model, r)[0].choices] for r in requests] == expected
    assert all(done.prompt_tokens > 0 and done.completion_tokens > 0 for done in together)


def test_several_are_written_in_one_pass():
    async def run():
        with running(random_model()) as worker:
            requests = [ask(f"def f{i}(x):\n", max_new_tokens=12) for i in range(8)]
            await asyncio.gather(*[worker.submit(r).whole() for r in requests])
            value = worker.metrics.value
            return value("codegen2_passes_total"), value("codegen2_pass_rows_total")

    passes, rows = asyncio.run(run())
    assert passes < 8 * 12 / 3
    assert rows / passes > 3


def test_with_one_slot_all_come_one_after_the_other(model):
    requests = [ask(f"def f{i}(x):\n", max_new_tokens=5, n=2, temperature=1.0, seed=1) for i in range(4)]
    one = Model(model.engine, TOK, cache_gib=0)
    assert len(one.scheduler.slots.slots) == 1
    found = [[[c.text for c in d.choices] for d in answers(m, *requests)] for m in (one, model)]
    assert found[0] == found[1]


@pytest.mark.parametrize("session", [None, "editor"])
def test_typing_on_a_line_reads_what_was_typed(session):
    async def run():
        with running(random_model()) as worker:
            prefix, read = PREFIX, []
            for key in "return f.read()":
                prefix += key
                done = await worker.submit(ask(prefix, SUFFIX, max_new_tokens=2, session=session)).whole()
                read.append(done.timings.prompt_n)
            return read

    read = asyncio.run(run())
    assert read[0] > 20
    assert max(read[1:]) <= 3


def test_long_texts_are_cut_and_big_budgets_lowered(model):
    long = answers(model, ask("x = 1\n" * 5000, "y = 2\n" * 5000, max_new_tokens=10**6), max_new_tokens=8)[0]
    assert long.prompt_tokens < 256 and long.dropped.prefix_chars and long.dropped.suffix_chars
    assert long.completion_tokens <= 8
    (half,) = answers(model, ask("x = 1\n" * 5000, max_new_tokens=10**6))
    assert half.completion_tokens <= 128, "half the context"


def test_a_stream_joins_to_the_result(model):
    async def run():
        with running(model) as worker:
            handle = worker.submit(ask(PREFIX, max_new_tokens=12, n=2, temperature=1.0, seed=1), stream=True)
            return [chunk async for chunk in handle], handle.result

    chunks, result = asyncio.run(run())
    assert len(chunks) > 4 and chunks[-1].result is result
    for i, choice in enumerate(result.choices):
        assert "".join(c.text for c in chunks if c.index == i) == choice.text


def test_between_the_steps_of_a_call_others_have_their_turn():
    async def run():
        with running(says("one two three")) as worker:
            handle = worker.submit(ask("a:", max_new_tokens=8))

            def call(model):  # would never end if it were made at once
                while not (handle.done):
                    yield 0
                yield 1

            return await asyncio.gather(worker.run_in_steps(call), handle.whole())

    value, result = asyncio.run(run())
    assert value == 1 and result.choices[0].text


def test_a_call_is_made_in_the_thread_and_its_error_is_the_callers():
    async def run():
        with running(says("x")) as worker:
            name = await worker.run(lambda model: (threading.current_thread().name, model.name))
            with pytest.raises(ZeroDivisionError):
                await worker.run(lambda model: 1 // 0)
            assert (await worker.submit(ask("a:")).whole()).text == "x"
            return name

    assert asyncio.run(run()) == ("codegen2-worker", "says")


# ---- ending early


def test_a_newer_request_supersedes_an_older_one_of_its_session_only():
    async def run():
        model = says("x" * 500, passes=4)
        with running(model) as worker:
            old = worker.submit(ask("a:", session="one", max_new_tokens=100), stream=True)
            other = worker.submit(ask("b:", session="two", max_new_tokens=5))
            stranger = worker.submit(ask("s:", session="one", user="another key", max_new_tokens=5))
            nobody = worker.submit(ask("c:", client="10.0.0.1", max_new_tokens=5))
            more = worker.submit(ask("d:", client="10.0.0.1", max_new_tokens=5))
            await first_of(old)
            await until(lambda: model.engine.waits)
            new = worker.submit(ask("a:x", session="one", max_new_tokens=0))
            waiting = [worker.submit(ask(f"{i}:", session="one", max_new_tokens=2)) for i in range(5)]
            model.engine.allow()
            first = await old.whole()
            assert (first.interrupted, first.choices[0].finish_reason) == ("superseded", "cancel")
            assert 0 < first.completion_tokens < 100
            for handle in (other, stranger, nobody, more, waiting[-1]):
                assert (await handle.whole()).interrupted is None
            for handle in (new, *waiting[:-1]):
                done = await handle.whole()
                assert done.interrupted == "superseded" and len(done.choices) == 1

    asyncio.run(run())


def test_cancelled_while_reading_the_next_is_right():
    config = ModelConfig(n_ctx=1024, n_embd=64, n_layer=6, n_head=1)
    model = Model(random_engine("native", config, spread=0.05, kind="int8"), TOK)
    text = "a = b + c\n" * 180
    expected = model.complete(text, max_new_tokens=4).text

    async def run():
        with running(model) as worker:
            for turns in (0, 1, 3):
                handle = worker.submit(ask(f"# {turns}\n" + text, max_new_tokens=4, n=2))
                for _ in range(turns):
                    await until(lambda h=handle: model.scheduler.running or h.done)
                handle.cancel()
                assert (await handle.whole()).interrupted in ("cancelled", None)
                assert (await worker.submit(ask(text, max_new_tokens=4)).whole()).text == expected

    asyncio.run(run())


def test_one_who_is_gone_does_not_end_the_others():
    async def run():
        model = says("x" * 300, passes=4)
        with running(model) as worker:
            gone = worker.submit(ask("a:", max_new_tokens=100), stream=True)
            stays = worker.submit(ask("b:", max_new_tokens=20))
            await first_of(gone)
            gone.cancel()
            model.engine.allow()
            assert (await gone.whole()).interrupted == "cancelled"
            done = await stays.whole()
            assert (done.interrupted, done.completion_tokens) == (None, 20)
            assert 'phase="write",reason="cancelled"' in worker.metrics.text()

    asyncio.run(run())


def test_a_long_pass_is_broken_off():
    async def run():
        model = says("x", passes=0)
        with running(model) as worker:
            handle = worker.submit(ask("a:" * 40))
            await until(lambda: model.engine.waits)
            handle.cancel()
            assert (await handle.whole()).interrupted == "cancelled"
            assert 'phase="read",reason="cancelled"' in worker.metrics.text()
            model.engine.allow()
            assert (await worker.submit(ask("a:")).whole()).text == "x"

    asyncio.run(run())


def test_fairness_one_with_many_requests_does_not_hold_up_another():
    async def run():
        order = []
        model = says("x" * 99)
        model.scheduler.max_running = 1
        with running(model) as worker:

            async def one(group, i):
                await worker.submit(ask(f"{group}{i}:", client=group, max_new_tokens=5)).whole()
                order.append(group)

            with worker._wake:  # so that all come in one turn
                many = [asyncio.ensure_future(one("many", i)) for i in range(10)]
                few = asyncio.ensure_future(one("few", 0))
                await asyncio.sleep(0)
            await asyncio.gather(*many, few)
        return order

    assert asyncio.run(run()).index("few") <= 2


# ---- trouble


def test_a_fault_fails_its_request_and_the_next_one_works(caplog):
    caplog.set_level("INFO", "codegen2")

    async def run():
        model = says("x")
        with running(model) as worker:
            assert (await worker.submit(ask("a:")).whole()).text == "x"
            model.engine.fail = [RuntimeError("the disk is on fire"), MemoryError()]
            for words in ("MemoryError", "the disk is on fire"):
                with pytest.raises(RuntimeError, match=words):
                    await worker.submit(ask("SECRET a:")).whole()
            assert (await worker.submit(ask("a:")).whole()).text == "x"
            assert worker.metrics.value("codegen2_faults_total") == 2

    asyncio.run(run())
    assert [r.fields["message"] for r in caplog.records if r.message == "fault"] == [
        "",
        "the disk is on fire",
    ]
    assert "SECRET" not in caplog.text


def test_an_exit_in_a_pass_unloads_the_model_and_the_next_one_works():
    async def run():
        with running(lambda: says("x")) as worker:
            await worker.submit(ask("a:")).whole()
            worker.model.engine.fail = [SystemExit("no")]
            with pytest.raises(RuntimeError, match="SystemExit"):
                await worker.submit(ask("a:")).whole()
            assert (await worker.submit(ask("a:")).whole()).text == "x"
            assert worker.metrics.value("codegen2_loads_total") == 2

    asyncio.run(run())


def test_what_is_wrong_with_a_request_is_a_value_error_and_harms_no_other():
    async def run():
        with running(random_model()) as worker:
            wrong = worker.submit(ask("a", logit_bias={51200: 1.0}))
            right = worker.submit(ask("a", max_new_tokens=2))
            with pytest.raises(ValueError, match="token 51200 is not in the vocabulary"):
                await wrong.whole()
            assert (await right.whole()).completion_tokens == 2
            assert worker.metrics.value("codegen2_faults_total") == 0

    asyncio.run(run())


def test_damaged_weights_are_told():
    model = says("x")
    real = model.engine.forward
    model.engine.forward = lambda pieces, cache: [np.full_like(f, np.nan) for f in real(pieces, cache)]
    with pytest.raises(DamagedWeights, match="weights are damaged"):
        answers(model, ask("a"))


def test_a_full_queue_and_a_server_that_goes_down():
    async def run():
        model = says("x" * 99, passes=0)
        with running(model, max_queue=2) as worker:
            one = worker.submit(ask("a:", max_new_tokens=20))
            two = worker.submit(ask("b:", max_new_tokens=20))
            with pytest.raises(Busy, match="2 requests wait or run already"):
                worker.submit(ask("c:"))
            worker.drain()
            with pytest.raises(Stopping):
                worker.submit(ask("c:"))
            model.engine.allow()
            assert {(await h.whole()).interrupted for h in (one, two)} == {None}
            await until(lambda: not worker.busy())

    asyncio.run(run())


def test_stopping_ends_what_runs():
    async def run():
        model = says("x" * 99, passes=4)
        model.scheduler.max_running = 1
        with running(model) as worker:
            runs = worker.submit(ask("a:", max_new_tokens=90), stream=True)
            waits = worker.submit(ask("b:", max_new_tokens=90))
            await first_of(runs)
            worker.cancel_all()
            assert (await runs.whole()).interrupted == "stopping"
            with pytest.raises(Stopping):
                await waits.whole()

    asyncio.run(run())


def test_an_idle_model_is_unloaded_and_comes_back():
    async def run():
        with running(lambda: says("x"), keep_alive_s=0.0) as worker:
            for loads in (1, 2, 3):
                assert (await worker.submit(ask("a:")).whole()).text == "x"
                assert worker.metrics.value("codegen2_loads_total") == loads
                await until(lambda: worker.state == "unloaded" and worker.model is None)
                assert worker.tokenizer is not None and worker.config.n_ctx == 256

    asyncio.run(run())


def test_a_model_is_kept_as_long_as_it_is_said():
    now = [100.0]

    async def run():
        with running(lambda: says("x"), keep_alive_s=5.0, clock=lambda: now[0]) as worker:
            await worker.submit(ask("a:")).whole()
            now[0] += 4.0
            await worker.submit(ask("a:")).whole()  # idle from now on
            await until(lambda: not worker.busy())
            now[0] += 4.9
            worker.keep_alive(5.0)  # wakes the thread, which finds that it is not the time yet
            assert (await worker.submit(ask("a:")).whole()).text == "x"
            assert worker.metrics.value("codegen2_unloads_total") == 0
            await until(lambda: not worker.busy())
            now[0] += 5.1
            worker.keep_alive(5.0)
            await until(lambda: worker.state == "unloaded")
            worker.keep_alive(-1)
            await worker.submit(ask("a:")).whole()
            await until(lambda: not worker.busy())
            now[0] += 1e9
            worker.keep_alive(-1)
            assert (await worker.submit(ask("a:")).whole()).text == "x"
            assert worker.metrics.value("codegen2_unloads_total") == 1

    asyncio.run(run())


def test_a_model_that_cannot_be_loaded_is_tried_again():
    tries = []

    def load():
        tries.append(1)
        if len(tries) == 1:
            raise SystemExit("no such checkpoint")
        if len(tries) == 2:
            raise ValueError("no such checkpoint")
        return says("x")

    async def run():
        with running(load) as worker:
            worker.start()
            await until(lambda: worker.state == "failed")
            with pytest.raises(NoModel, match="cannot be loaded: no such checkpoint"):
                await worker.submit(ask("a:")).whole()
            assert (await worker.submit(ask("a:")).whole()).text == "x"
            assert worker.state == "ready"

    asyncio.run(run())


def test_a_fault_before_a_pass_is_told_and_not_tried_without_end(monkeypatch):
    async def run():
        model = says("x")
        with running(model) as worker:
            await worker.submit(ask("a:")).whole()
            monkeypatch.setattr(model.scheduler, "_admit", lambda: 1 // 0)
            with pytest.raises(RuntimeError, match="ZeroDivisionError"):
                await worker.submit(ask("a:")).whole()
            monkeypatch.undo()
            assert (await worker.submit(ask("a:")).whole()).text == "x"
            assert worker.metrics.value("codegen2_faults_total") == 1

    asyncio.run(run())


def test_a_dead_thread_is_told_and_nobody_waits(monkeypatch):
    async def run():
        model = says("x", passes=0)
        with running(model) as worker:
            handle = worker.submit(ask("a:"))
            await until(lambda: model.engine.waits)
            monkeypatch.setattr(worker, "_fault", lambda error: 1 // 0)
            model.engine.fail = [RuntimeError("SECRET")]
            model.engine.allow()
            with pytest.raises(RuntimeError, match="SECRET"):
                await handle.whole()
            await until(lambda: worker.state == "dead")
            with pytest.raises(
                NoModel, match="the worker has died \\(ZeroDivisionError\\); start the server again"
            ):
                worker.submit(ask("a:"))

    asyncio.run(run())


def test_no_thread_is_left_behind():
    before = threading.active_count()
    answers(random_model(), ask("a"))
    assert threading.active_count() == before
