"""The clients that people have, from PyPI and npm, against a real server on the model in the box."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serve_tools import Process

ROOT = Path(__file__).parents[2]
NODE = ROOT / "build" / "node"  # git knows nothing of it
ADAPTERS = "@continuedev/openai-adapters@1.37.0"
PREFIX, SUFFIX = "import math\n\n\ndef area(radius):\n    return ", "\n\n\nprint(area(2))\n"
MARKED = f"<|fim_prefix|>{PREFIX}<|fim_suffix|>{SUFFIX}<|fim_middle|>"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    process = Process("--threads", "1")
    process.wait_until_ready()
    yield f"http://127.0.0.1:{process.port}"
    assert process.end() == 0


@pytest.fixture(scope="module")
def openai() -> Any:
    return pytest.importorskip("openai", reason="needs codegen2[test]")


def make(client: type, url: str) -> Any:
    return client(base_url=f"{url}/v1", api_key="none", max_retries=0)


# ---- openai


def test_openai_whole_streamed_and_counted(server: str, openai: Any) -> None:
    options: Any = {
        "model": "codegen2",
        "prompt": PREFIX,
        "suffix": SUFFIX,
        "max_tokens": 24,
        "temperature": 0,
    }
    with make(openai.OpenAI, server) as client:
        whole = client.completions.create(**options)
        chunks = list(
            client.completions.create(**options, stream=True, stream_options={"include_usage": True})
        )
        assert [m.id for m in client.models.list()] == ["codegen2-box"]
    text = "".join(c.choices[0].text for c in chunks if c.choices)
    assert text == whole.choices[0].text != ""
    assert whole.choices[0].finish_reason in ("stop", "length") and whole.object == "text_completion"
    usage = chunks[-1].usage
    assert usage.prompt_tokens == whole.usage.prompt_tokens and usage.total_tokens > usage.prompt_tokens
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason


def test_openai_markers_give_the_same_infill(server: str, openai: Any) -> None:
    with make(openai.OpenAI, server) as client:
        marked = client.completions.create(model="x", prompt=MARKED, max_tokens=24, temperature=0)
        plain = client.completions.create(
            model="x", prompt=PREFIX, suffix=SUFFIX, max_tokens=24, temperature=0
        )
    assert marked.choices[0].text == plain.choices[0].text
    assert marked.usage.prompt_tokens == plain.usage.prompt_tokens


def test_openai_logprobs_several_prompts_and_answers(server: str, openai: Any) -> None:
    with make(openai.OpenAI, server) as client:
        found = client.completions.create(
            model="x", prompt=["a = ", "b = "], n=2, logprobs=2, max_tokens=3, temperature=1, seed=1
        )
        assert [c.index for c in found.choices] == [0, 1, 2, 3]
        for choice in found.choices:
            logprobs = choice.logprobs
            assert (
                0
                < len(logprobs.tokens)
                <= 3
                == len({*map(len, (logprobs.tokens, logprobs.token_logprobs))}) + 2
            )
            assert (
                all(p <= 0 for p in logprobs.token_logprobs)
                and logprobs.tokens[0] in logprobs.top_logprobs[0]
            )


def test_openai_errors_have_a_name(server: str, openai: Any) -> None:
    with make(openai.OpenAI, server) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model="x", prompt="a", top_p=7)
        assert caught.value.param == "top_p" and "from 0 to 1" in caught.value.message
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="x", messages=[{"role": "user", "content": "hi"}])
        assert client.completions.create(model="x", prompt="a", max_tokens=1).choices


def test_openai_async_several_at_once_and_one_given_up(server: str, openai: Any) -> None:
    async def work() -> list[str]:
        async with make(openai.AsyncOpenAI, server) as client:
            given_up = await client.completions.create(
                model="x", prompt="x = 1\n" * 50, max_tokens=256, stream=True
            )
            await anext(aiter(given_up))
            await given_up.close()
            asked = [
                client.completions.create(model="x", prompt=f"{PREFIX}{i}", suffix=SUFFIX, max_tokens=8)
                for i in range(8)
            ]
            whole = await asyncio.gather(*asked)
            stream = await client.completions.create(model="x", prompt=PREFIX, suffix=SUFFIX, stream=True)
            text = "".join([c.choices[0].text async for c in stream if c.choices])
            return [w.choices[0].finish_reason for w in whole] + [text]

    *reasons, text = asyncio.run(work())
    assert set(reasons) <= {"stop", "length"} and len(reasons) == 8 and text


# ---- mistralai


@pytest.fixture(scope="module")
def mistral(server: str) -> Iterator[Any]:
    pytest.importorskip("mistralai", reason="needs codegen2[test]")
    with warnings.catch_warnings():  # theirs, at import
        warnings.simplefilter("ignore")
        from mistralai.client import Mistral
    with Mistral(api_key="none", server_url=server) as client:
        yield client


def test_mistral_fim(mistral: Any) -> None:
    options: Any = {
        "model": "codestral-latest",
        "prompt": PREFIX,
        "suffix": SUFFIX,
        "max_tokens": 24,
        "temperature": 0,
    }
    whole = mistral.fim.complete(**options, random_seed=1, stop=["\n\n\n"])
    assert whole.choices[0].message.role == "assistant"
    with mistral.fim.stream(**options) as stream:
        chunks = [event.data for event in stream]
    text = "".join(c.choices[0].delta.content for c in chunks if c.choices)
    assert text == whole.choices[0].message.content != ""
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens


def test_mistral_fim_async(server: str, mistral: Any) -> None:
    async def work() -> Any:
        async with type(mistral)(api_key="none", server_url=server) as client:
            return await client.fim.complete_async(
                model="x", prompt=PREFIX, suffix=SUFFIX, max_tokens=8, min_tokens=2
            )

    assert asyncio.run(work()).usage.completion_tokens >= 2


# ---- ollama


@pytest.fixture(scope="module")
def ollama(server: str) -> Iterator[Any]:
    with pytest.importorskip("ollama", reason="needs codegen2[test]").Client(host=server) as client:
        yield client


def test_ollama_generate(ollama: Any) -> None:
    options = {"num_predict": 24, "temperature": 0, "suggest_above": 0}
    whole = ollama.generate("codegen2", PREFIX, suffix=SUFFIX, options=options, keep_alive="5m")
    parts = list(ollama.generate("codegen2", PREFIX, suffix=SUFFIX, options=options, stream=True))
    marked = ollama.generate("qwen2.5-coder", MARKED, raw=True, options=options)
    assert "".join(p.response for p in parts) == whole.response == marked.response != ""
    assert parts[-1].done and whole.done_reason in ("stop", "length")
    assert whole.eval_count > 0 and whole.total_duration >= whole.eval_duration > 0
    assert ollama.generate("codegen2").done_reason == "load"


def test_ollama_side_calls(ollama: Any) -> None:
    card = ollama.show("codegen2")
    assert card.capabilities == ["completion", "insert"] and ".Suffix" in card.template
    assert card.modelinfo["codegen2.context_length"] == 2048
    assert [m.model for m in ollama.list().models] == ["codegen2-box"]
    assert [m.model for m in ollama.ps().models] == ["codegen2-box"]


def test_ollama_errors(ollama: Any) -> None:
    import ollama as package

    with pytest.raises(package.ResponseError, match="top_p must be a number from 0 to 1") as caught:
        ollama.generate("codegen2", "a", options={"top_p": 9})
    assert caught.value.status_code == 400


def test_ollama_async(server: str, ollama: Any) -> None:
    import ollama as package

    async def work() -> str:
        async with package.AsyncClient(host=server) as client:
            every = {"suggest_above": 0}  # an unsure answer too
            stream = await client.generate("codegen2", PREFIX, suffix=SUFFIX, stream=True, options=every)
            return "".join([part.response async for part in stream])

    assert asyncio.run(work())


# ---- Continue's adapters, from npm

SCRIPT = """
import { constructLlmApi } from "@continuedev/openai-adapters";
const [url, prompt, suffix] = process.argv.slice(2);
const found = {};
for (const [name, provider, base] of [
  ["openai", "openai", `${url}/v1/`], ["mistral", "mistral", `${url}/v1/`], ["deepseek", "deepseek", `${url}/`],
]) {
  const api = constructLlmApi({ provider, apiKey: "none", apiBase: base });
  let text = "";
  const body = { model: "codegen2", prompt, suffix, max_tokens: 24, temperature: 0, stream: true };
  for await (const chunk of api.fimStream(body, new AbortController().signal)) {
    text += chunk.choices[0].delta.content ?? "";
  }
  found[name] = text;
}
const api = constructLlmApi({ provider: "openai", apiKey: "none", apiBase: `${url}/v1/` });
const body = { model: "codegen2", prompt, max_tokens: 8, temperature: 0 };
const signal = new AbortController().signal;
found.completion = (await api.completionNonStream({ ...body, stream: false }, signal)).choices[0].text;
found.streamed = "";
for await (const chunk of api.completionStream({ ...body, stream: true }, signal)) {
  found.streamed += chunk.choices[0]?.text ?? "";
}
console.log(JSON.stringify(found));
"""


@pytest.fixture(scope="module")
def adapters() -> Path:
    """Return a folder where node finds Continue's adapters; they are fetched once."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs Node")
    if not (NODE / "node_modules" / "@continuedev" / "openai-adapters").is_dir():
        NODE.mkdir(parents=True, exist_ok=True)
        command = [
            "npm",
            "install",
            "--prefix",
            str(NODE),
            "--no-audit",
            "--no-fund",
            "--ignore-scripts",
            ADAPTERS,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode:
            pytest.skip(f"npm has no {ADAPTERS}: {done.stderr[-200:]}")
    return NODE


@pytest.mark.slow  # asks the package index the first time
def test_continue_adapters(server: str, adapters: Path) -> None:
    script = adapters / "adapters.mjs"
    script.write_text(SCRIPT, "utf-8")
    command = ["node", str(script), server, PREFIX, SUFFIX]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=adapters)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["openai"] == found["mistral"] == found["deepseek"] != ""
    assert found["completion"] == found["streamed"] != ""
