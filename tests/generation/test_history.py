"""An answer is a function of its request: alone, batched with others, streamed, and after any history of requests, bit
for bit the same text, tokens and log-probabilities.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import pytest
from one_answer_cases import cases

from codegen2.api import Model
from codegen2.generation.params import SamplingParams
from codegen2.generation.request import Request
from codegen2.generation.results import Result
from codegen2.generation.scheduler import Scheduler
from codegen2.loading import load


def kept() -> list[Request]:
    """Return requests of every kind, each in three of the six languages and at one of the three cursors."""
    by_kind: dict[str, list[Request]] = {}
    for name, request in cases():
        by_kind.setdefault(name.rpartition(" ")[2], []).append(request)
    return [r for k, all_of in enumerate(by_kind.values()) for r in all_of[k % 9 :: 9]]


def with_logprobs(request: Request) -> Request:
    """Return the request, asking for log-probabilities, and for the same of its prompt where that can be."""
    params = dataclasses.replace(request.params, top_logprobs=2)
    echo = request.tokens is not None
    return dataclasses.replace(request, params=params, session=None, echo=echo)


EVERY_REQUEST = [with_logprobs(request) for request in kept()]
REQUESTS: list[Request] = []  # those of this run


@pytest.fixture(scope="module", autouse=True, params=[2, pytest.param(1, marks=pytest.mark.slow)])
def share(request: pytest.FixtureRequest) -> None:
    """Ask every second request, of each kind one; `make test-slow` asks them all."""
    REQUESTS[:] = EVERY_REQUEST[:: request.param]


@pytest.fixture(scope="module")
def model() -> Model:
    """Return the model in the box."""
    return load(engine="native")


def fresh(model: Model, **more: Any) -> Scheduler:
    """Return a scheduler that has read nothing."""
    return Scheduler(model.engine, model.tokenizer, model.scheduler.rules, **more)


def run(scheduler: Scheduler, requests: Sequence[Request]) -> list[Result]:
    """Return the results of requests that are added at once."""
    handles = [scheduler.add(request) for request in requests]
    while scheduler.step():
        pass
    assert all(h.error is None for h in handles), [h.error for h in handles if h.error]
    return [h.result for h in handles if h.result is not None]


def said(result: Result) -> Any:
    """Return all that a result says of its answers, without how long it took and what was cached."""
    return (
        result.choices,
        result.prompt_logprobs,
        result.prompt_tokens,
        result.completion_tokens,
        result.dropped,
    )


def differences(results: Sequence[Result], expected: Sequence[Result]) -> list[Any]:
    """Return what differs, the shortest first."""
    pairs = zip(REQUESTS, results, expected, strict=True)
    wrong = [(q.prefix[-40:], said(r), said(e)) for q, r, e in pairs if said(r) != said(e)]
    return sorted(wrong, key=lambda w: len(str(w)))


@pytest.fixture(scope="module")
def alone(model: Model) -> list[Result]:
    """Return each answer of a scheduler that has read nothing else."""
    return [run(fresh(model, cache_bytes=2**26), [request])[0] for request in REQUESTS]


def test_the_requests_say_something(alone: list[Result]) -> None:
    assert len(EVERY_REQUEST) >= 20 and len(REQUESTS) >= 10
    assert sum(len(r.choices[0].logprobs) > 1 for r in alone) > 0.7 * len(REQUESTS)
    assert any(r.prompt_logprobs for r in alone)


@pytest.mark.parametrize(("max_running", "cache_bytes"), [(16, 2**30), (3, 2**22)])
def test_batched_with_others(model: Model, alone: list[Result], max_running: int, cache_bytes: int) -> None:
    """In any order, many or few at once, and where the cache holds next to nothing."""
    order = list(range(len(REQUESTS)))
    random.Random(max_running).shuffle(order)
    scheduler = fresh(model, max_running=max_running, cache_bytes=cache_bytes)
    found = dict(zip(order, run(scheduler, [REQUESTS[i] for i in order]), strict=True))
    assert not differences([found[i] for i in range(len(order))], alone)


def test_again_after_all_the_others(model: Model, alone: list[Result]) -> None:
    """Every other request is history; what it left in the cache only saves reading."""
    scheduler = fresh(model)
    run(scheduler, REQUESTS)
    again = run(scheduler, REQUESTS[::-1])[::-1]
    assert not differences(again, alone)
    assert sum(r.timings.cached_n for r in again) > sum(r.timings.prompt_n for r in again)


def test_while_the_file_is_typed_key_by_key(model: Model, alone: list[Result]) -> None:
    """Six keys before a request, an empty file before those, and another client's requests between them."""
    scheduler = fresh(model)
    results: list[Result] = []
    other = dataclasses.replace(REQUESTS[0], params=SamplingParams(max_new_tokens=2))
    for number, request in enumerate(REQUESTS):
        if request.tokens is None and not request.between and number % 2 == 0:
            short = dataclasses.replace(request, params=SamplingParams(max_new_tokens=2))
            run(scheduler, [dataclasses.replace(short, prefix="", suffix="")])
            for n in range(max(0, len(request.prefix) - 6), len(request.prefix)):
                typed = dataclasses.replace(short, prefix=request.prefix[:n], client="one")
                between = dataclasses.replace(other, prefix=other.prefix + "#" * (n % 3), client="another")
                run(scheduler, [typed, between] if n % 4 == 0 else [typed])
            results += run(scheduler, [request])
        else:
            results.append(alone[number])
    assert not differences(results, alone)


def test_streamed_and_joined(model: Model, alone: list[Result]) -> None:
    """Pieces join to the text, and their log-probabilities to the answer's, whoever reads along and when."""
    scheduler = fresh(model)
    handles = [scheduler.add(request) for request in REQUESTS]
    texts = [[""] * r.params.n for r in REQUESTS]
    logprobs: list[list[tuple[Any, ...]]] = [[()] * r.params.n for r in REQUESTS]
    more = True
    while more:
        more = scheduler.step()
        for number, handle in enumerate(handles):
            while handle.chunks and (more is False or number % 2):  # every second is read late
                chunk = handle.chunks.popleft()
                texts[number][chunk.index] += chunk.text
                logprobs[number][chunk.index] += chunk.logprobs
    for request, answer, text, told in zip(REQUESTS, alone, texts, logprobs, strict=True):
        if request.params.best_of is None and not request.between:
            assert text == [c.text for c in answer.choices], request.prefix[-40:]
            assert told == [c.logprobs for c in answer.choices], request.prefix[-40:]
    assert not differences([h.result for h in handles if h.result is not None], alone)
