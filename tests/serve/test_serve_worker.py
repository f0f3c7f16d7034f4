"""The worker: the same answers as Model gives, several at once, for less reading; and every way to end early."""

import asyncio
import threading

import pytest
from serve_tools import TOK, Says, ask, first_of, running, says, until
from tiny import random_engine, random_model

from codegen2.api import Model
from codegen2.config import ModelConfig
from codegen2.serve.job import Job
from codegen2.serve.schema import Ask, BadField
from codegen2.serve.slots import Slots, shared
from codegen2.serve.worker import Busy, Stopping

PREFIX = "import os\n\n\ndef read(path):\n    with open(path) as f:\n        "
SUFFIX = "\n\ndef write(path):\n    pass\n"


@pytest.fixture(scope="module")
def model(engine):
    return random_model(engine)


def answers(model, *asks, **settings):
    """Submit all at once and return their answers."""

    async def run():
        with running(model, **settings) as worker:
            return await asyncio.gather(*[worker.submit(a).whole() for a in asks])

    return asyncio.run(run())


def test_answers_are_those_of_the_model_also_together(model):
    sampled = {"max_new_tokens": 12, "temperature": 0.9, "seed": 5}
    asks = [
        ask("a = b\n", max_new_tokens=12),
        ask("def f(x):\n", **sampled),
        ask("x", **sampled, n=3),
        ask("def f(x):\n", **sampled, n=2, best_of=4),
        ask(PREFIX, SUFFIX, max_new_tokens=12, stop=["a", "e"]),
        ask(PREFIX, SUFFIX, **sampled, n=2, best_of=3),
        ask("", max_new_tokens=5, presence_penalty=1.5, frequency_penalty=0.5, logit_bias={5: -100}),
    ]
    expected = []
    for a in asks:
        if a.suffix is None:
            expected.append([c.text for c in model.complete(a.prefix, params=a.params).choices])
        else:
            done = model.infill(a.prefix, a.suffix, params=a.params, stop_at="block", anchor="line")
            expected.append([c.text for c in done.choices])
    together = answers(model, *asks)
    assert [[c.text for c in done.choices] for done in together] == expected
    one_by_one = [answers(model, a)[0] for a in asks]
    assert [[c.text for c in done.choices] for done in one_by_one] == expected
    assert all(done.prompt_tokens > 0 and done.completion_tokens > 0 for done in together)


def test_several_are_written_in_one_pass():
    async def run():
        with running(random_model()) as worker:
            asks = [ask(f"def f{i}(x):\n", max_new_tokens=30) for i in range(8)]
            await asyncio.gather(*[worker.submit(a).whole() for a in asks])
            return worker.metrics.value("codegen2_passes_total"), worker.metrics.value(
                "codegen2_pass_rows_total"
            )

    passes, rows = asyncio.run(run())
    assert passes < 8 * 30 / 4
    assert rows / passes > 4


def test_with_one_slot_all_come_one_after_the_other(model):
    asks = [ask(f"def f{i}(x):\n", max_new_tokens=5, n=2, temperature=1.0, seed=1) for i in range(4)]
    assert [[c.text for c in d.choices] for d in answers(model, *asks, cache_gib=0)] == [
        [c.text for c in d.choices] for d in answers(model, *asks)
    ]


@pytest.mark.parametrize("session", [None, "editor"])
def test_typing_on_a_line_reads_what_was_typed(session):
    async def run():
        with running(random_model()) as worker:
            prefix, read = PREFIX, []
            for key in "return f.read()":
                prefix += key
                done = await worker.submit(ask(prefix, SUFFIX, max_new_tokens=2, session=session)).whole()
                read.append(done.timings.prompt_n)
                assert done.timings.cached_n + done.timings.prompt_n == done.prompt_tokens
            return read

    read = asyncio.run(run())
    assert read[0] > 20
    assert max(read[1:]) <= 3


def test_a_warm_up_fills_the_cache():
    async def run():
        with running(random_model()) as worker:
            warm = await worker.submit(ask(PREFIX, SUFFIX, max_new_tokens=0)).whole()
            assert (warm.choices[0].text, warm.choices[0].finish_reason, warm.completion_tokens) == (
                "",
                "length",
                0,
            )
            done = await worker.submit(ask(PREFIX + "r", SUFFIX, max_new_tokens=2)).whole()
            assert done.timings.prompt_n <= 2

    asyncio.run(run())


def test_n_answers_read_the_prompt_once():
    (done,) = answers(random_model(), ask("a = b + c\n" * 20, max_new_tokens=3, n=4, temperature=1.0))
    assert len({c.text for c in done.choices}) > 1
    assert done.timings.prompt_n <= done.prompt_tokens + 3


def test_long_texts_are_cut_and_big_budgets_lowered(model):
    long = answers(model, ask("x = 1\n" * 5000, "y = 2\n" * 5000, max_new_tokens=10**6), max_new_tokens=8)[0]
    assert long.prompt_tokens < 256 and long.dropped.prefix_chars and long.dropped.suffix_chars
    assert long.completion_tokens <= 8
    tokens = Ask(tokens=tuple([257] * 5000))
    assert answers(model, tokens)[0].prompt_tokens <= 256


# ---- text


def test_pieces_join_to_the_answer_and_repeat_nothing():
    text = "a = 1\n    b = 2\n    c = 3\n    d = 4\n    return a\n\ndef write(path):\n    pass\n"

    async def run(**kwargs):
        with running(says(text)) as worker:
            ticket = worker.submit(
                ask("def f():\n    ", "\n\ndef write(path):\n    pass\n", max_new_tokens=99, **kwargs)
            )
            pieces = [p async for p in ticket]
            return pieces, ticket.result

    pieces, result = asyncio.run(run())
    choice = result.choices[0]
    assert "".join(p.text for p in pieces) == choice.text
    assert choice.text == "a = 1\n    b = 2\n    c = 3\n    d = 4\n    return a"
    assert len([p for p in pieces if p.text]) >= 3, "nothing came before the end"
    assert {cut.reason for cut in choice.cuts} & {"dedent", "suffix_overlap"}
    assert pieces[-1].finish_reason == "stop"
    raw, result = asyncio.run(run(raw=True))
    assert "".join(p.text for p in raw) == result.choices[0].text == text
    assert result.choices[0].ended_by_model and result.choices[0].cuts == ()


def test_windows_line_ends_come_back():
    (done,) = answers(says("a = 1\n    b = 2\n"), ask("def f():\r\n    ", "\r\nx = 3\r\n", max_new_tokens=30))
    assert done.choices[0].text == "a = 1\r\n    b = 2\r\n"


def test_no_control_token_comes_out_or_goes_in():
    (done,) = answers(says("a<mask_1>b", end=":"), ask("x:", max_new_tokens=30))
    assert done.choices[0].text == "a<mask_1>b"  # the letters
    engine = Says("")
    engine.script = [51199, 50299, 50256]
    (done,) = answers(Model(engine, TOK, ""), ask("x", "y", max_new_tokens=5))
    assert done.choices[0].raw == "!" * len(done.choices[0].raw)  # masks are never chosen; the next best is
    model = random_model()
    seen = []
    real = model.engine.extend_rows
    model.engine.extend_rows = lambda work, cache: (
        seen.extend(i for w in work for i in w[2]) or real(work, cache)
    )
    answers(model, ask("<mask_1><|endoftext|><sep><eom>", "<mask_2>", max_new_tokens=0))
    assert [i for i in seen if i >= 50295 or i == 50256] == [51199, 50256, 50299, 51199]


def test_stop_strings_and_min_tokens():
    (done,) = answers(says("one two", end=":"), ask("x:", max_new_tokens=9, stop=[" two"]))
    assert (done.choices[0].text, done.choices[0].stop_string, done.choices[0].finish_reason) == (
        "one",
        " two",
        "stop",
    )
    (done,) = answers(says("one", end=":"), ask("x:", max_new_tokens=9, min_tokens=4))
    assert done.completion_tokens >= 4


# ---- ending early


def test_a_newer_ask_supersedes_an_older_one_of_its_session_only():
    async def run():
        with running(says("x" * 500, end=":", delay=0.01)) as worker:
            old = worker.submit(ask("a:", session="one", max_new_tokens=200))
            other = worker.submit(ask("b:", session="two", max_new_tokens=5))
            nobody = worker.submit(ask("c:", client="10.0.0.1", max_new_tokens=5))
            more = worker.submit(ask("d:", client="10.0.0.1", max_new_tokens=5))
            await first_of(old)
            new = worker.submit(ask("a:x", session="one", max_new_tokens=0))
            waiting = [worker.submit(ask(f"{i}:", session="one", max_new_tokens=2)) for i in range(5)]
            first = await old.whole()
            assert (first.interrupted, first.choices[0].finish_reason) == ("superseded", "cancel")
            assert 0 < first.completion_tokens < 200
            for ticket in (other, nobody, more, waiting[-1]):
                assert (await ticket.whole()).interrupted is None
            for ticket in (new, *waiting[:-1]):
                done = await ticket.whole()
                assert done.interrupted == "superseded" and len(done.choices) == 1

    asyncio.run(run())


def test_cancelled_while_reading_it_stops_and_the_next_is_right():
    config = ModelConfig(n_ctx=1024, n_embd=256, n_layer=6, n_head=4)
    model = Model(random_engine("native", config, spread=0.05, kind="int8"), TOK)
    text = "a = b + c\n" * 180
    expected = model.complete(text, max_new_tokens=4).text

    async def run():
        with running(model) as worker:
            for delay in (0.0, 0.003, 0.01, 0.03, 0.06):
                ticket = worker.submit(ask(f"# {delay}\n" + text, max_new_tokens=4, n=2))
                await asyncio.sleep(delay)
                ticket.cancel()
                assert (await ticket.whole()).interrupted in ("cancelled", None)
                assert (await worker.submit(ask(text, max_new_tokens=4)).whole()).choices[0].text == expected
            assert worker.metrics.value("codegen2_cancelled_total") >= 2
            return worker.metrics.text()

    assert 'phase="read",reason="cancelled"' in asyncio.run(run())


def test_one_who_is_gone_does_not_end_the_others():
    async def run():
        with running(says("x" * 300, end=":", delay=0.005)) as worker:
            gone = worker.submit(ask("a:", max_new_tokens=100))
            stays = worker.submit(ask("b:", max_new_tokens=20))
            await first_of(gone)
            gone.cancel()
            assert (await gone.whole()).interrupted == "cancelled"
            done = await stays.whole()
            assert (done.interrupted, done.completion_tokens) == (None, 20)

    asyncio.run(run())


def test_prompts_of_those_who_are_gone_are_not_prepared(monkeypatch):
    prepared = []

    async def run():
        with running(says("x", end=":")) as worker:
            await worker.submit(ask("a:")).whole()
            real, tickets = Job.prepare, []

            def prepare(job, *args):
                prepared.append(job)
                for ticket in tickets:
                    ticket.cancel()
                real(job, *args)

            monkeypatch.setattr(Job, "prepare", prepare)
            with worker._wake:  # so that all come in one turn
                tickets += [worker.submit(ask(f"{i}:")) for i in range(4)]
            assert [(await t.whole()).interrupted for t in tickets] == ["cancelled"] * 4

    asyncio.run(run())
    assert len(prepared) == 1


def test_a_long_pass_is_broken_off():
    async def run():
        engine = Says("x", end=":", delay=30.0)
        with running(Model(engine, TOK, "")) as worker:
            ticket = worker.submit(ask("a:" * 40))
            await until(lambda: engine.passes)
            ticket.cancel()
            assert (await asyncio.wait_for(ticket.whole(), 10)).interrupted == "cancelled"
            engine.delay = 0.0
            assert (await worker.submit(ask("a:")).whole()).choices[0].text == "x"

    asyncio.run(run())


def test_a_deadline_counts_once_a_line_exists():
    late = {"deadline_s": 1e-9, "max_new_tokens": 40}
    (endless,) = answers(says("x = 1 + 2 + 3 + 4 + 5", end=":"), ask("a:", **{**late, "max_new_tokens": 8}))
    assert endless.choices[0].finish_reason == "length"
    (done,) = answers(
        says("x = 1\n    y = 2\n    z = 3\n"),
        Ask("def f():\n    ", "\nq\n", params=ask("", max_new_tokens=40).params, deadline_s=1e-9),
    )
    assert (done.choices[0].text, done.choices[0].finish_reason) == ("x = 1", "deadline")


def test_fairness_one_with_many_asks_does_not_hold_up_another():
    async def run():
        order = []
        with running(says("x" * 99, end=":", delay=0.001), max_parallel=1) as worker:

            async def one(group, i):
                await worker.submit(ask(f"{group}{i}:", client=group, max_new_tokens=5)).whole()
                order.append(group)

            many = [asyncio.ensure_future(one("many", i)) for i in range(10)]
            await asyncio.sleep(0)
            few = asyncio.ensure_future(one("few", 0))
            await asyncio.gather(*many, few)
        return order

    assert asyncio.run(run()).index("few") <= 2


# ---- trouble


def test_a_fault_fails_its_ask_and_the_next_one_works(caplog):
    caplog.set_level("INFO", "codegen2.serve")

    async def run():
        engine = Says("x", end=":")
        with running(Model(engine, TOK, "")) as worker:
            assert (await worker.submit(ask("a:")).whole()).choices[0].text == "x"
            engine.fail = [RuntimeError("the disk is on fire"), MemoryError()]
            for told in ("MemoryError", "the disk is on fire"):
                with pytest.raises(RuntimeError, match=told):
                    await worker.submit(ask("SECRET a:")).whole()
            assert (await worker.submit(ask("a:")).whole()).choices[0].text == "x"
            assert worker.metrics.value("codegen2_faults_total") == 2

    asyncio.run(run())
    assert "on fire" in caplog.text and "SECRET" not in caplog.text


def test_what_is_wrong_with_an_ask_is_said_by_name():
    with pytest.raises(BadField, match="token 51200 is not in the vocabulary") as e:
        answers(random_model(), ask("a", logit_bias={51200: 1.0}))
    assert e.value.param == "logit_bias"


def test_a_full_queue_and_a_server_that_goes_down():
    async def run():
        with running(says("x" * 99, end=":", delay=0.01), max_queue=2) as worker:
            one = worker.submit(ask("a:", max_new_tokens=20))
            two = worker.submit(ask("b:", max_new_tokens=20))
            with pytest.raises(Busy, match="2 requests wait or run already"):
                worker.submit(ask("c:"))
            worker.drain()
            with pytest.raises(Stopping):
                worker.submit(ask("c:"))
            assert {(await t.whole()).interrupted for t in (one, two)} == {None}
            assert not worker.busy()

    asyncio.run(run())


def test_stopping_ends_what_runs():
    async def run():
        with running(says("x" * 99, end=":", delay=0.01), max_parallel=1) as worker:
            runs = worker.submit(ask("a:", max_new_tokens=90))
            waits = worker.submit(ask("b:", max_new_tokens=90))
            await first_of(runs)
            worker.cancel_all()
            assert (await runs.whole()).interrupted == "stopping"
            with pytest.raises(Stopping):
                await waits.whole()

    asyncio.run(run())


def test_an_idle_model_is_unloaded_and_comes_back():
    async def run():
        with running(lambda: says("x", end=":"), keep_alive_s=0.0) as worker:
            for loads in (1, 2, 3):
                assert (await worker.submit(ask("a:")).whole()).choices[0].text == "x"
                assert worker.metrics.value("codegen2_loads_total") == loads
                await until(lambda: worker.state == "unloaded" and worker.model is None)
            worker.keep_alive(-1)
            await worker.submit(ask("a:")).whole()
            await asyncio.sleep(0.05)
            assert worker.state == "ready"

    asyncio.run(run())


def test_a_model_that_cannot_be_loaded_is_tried_again():
    found = [says("x", end=":")]
    tries = []

    def load():
        tries.append(1)
        if len(tries) < 3:
            raise ValueError("no such checkpoint")
        return found[0]

    async def run():
        with running(load) as worker:
            worker.start()
            await until(lambda: worker.state == "failed")
            with pytest.raises(RuntimeError, match="no such checkpoint"):
                await worker.submit(ask("a:")).whole()
            assert (await worker.submit(ask("a:")).whole()).choices[0].text == "x"

    asyncio.run(run())


def test_no_thread_is_left_behind():
    before = threading.active_count()
    answers(random_model(), ask("a"))
    assert threading.active_count() == before


# ---- slots


def test_a_prompt_takes_the_slot_that_shares_most():
    engine = random_engine()
    slots = Slots(engine, 3 * engine.config.n_ctx * 2 * engine.config.n_layer * engine.config.n_embd * 2)
    assert len(slots.slots) == 3
    a, b, c = list(range(100, 140)), list(range(200, 240)), list(range(300, 340))

    def read(prompt):
        slot, got = slots.take(prompt)
        slots.rows.extend([(slot.number, got, prompt[got:], 1)])
        slot.tokens += prompt[got:]
        return slot, got

    one, got = read(a)
    assert got == 0
    two, got = read(b)
    assert two is not one
    slots.release(one)
    slots.release(two)
    again, got = read([*a, 1])
    assert (again, got) == (one, 40)
    # That slot is busy, so an empty one gets a copy of what it holds.
    third, got = read([*a, 2])
    assert third.number == 2 and got == 40
    assert slots.take([*b[:30], 5])[0] is two
    assert slots.take(c) is None
    for slot in slots.slots:
        slots.release(slot)
    slots.take(c)
    assert [s.number for s in slots.slots if s.busy] == [0], "the least recently used one"


def test_shared():
    assert shared([], [1]) == 0 and shared([1, 2, 9, 4], [1, 2, 3, 4]) == 2
