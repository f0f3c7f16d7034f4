"""The language server as a process: driven by pytest-lsp in the name of editors, and on a disk that is full."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

pytest.importorskip("pygls", reason="needs codegen2[lsp]")
pytest.importorskip("resource", reason="needs limits a process can have")

import resource

from lsp_client import Process
from lsprotocol import types
from pygls.exceptions import JsonRpcException
from serve_tools import LIMITED, left

EDITORS = ["neovim@v0.11", "visual-studio-code", "emacs"]  # whose capabilities pytest-lsp has recorded
URI = "file:///a.py"
TEXT = "s = '\U0001f600'\ndef add(a, b):\n    return \n\n\nprint(add(1, 2))\n"
LONG = "".join(f"value_{i} = compute({i}, other={i * 7})\n" for i in range(4000))
COMMAND = [sys.executable, "-m", "codegen2", "lsp"]


@contextlib.asynccontextmanager
async def talking(editor: str) -> AsyncIterator[Any]:
    """Begin in the name of an editor; pytest-lsp's own fixtures would need the plugin pytest-asyncio."""
    pytest_lsp = pytest.importorskip("pytest_lsp", reason="needs codegen2[test]")
    client: Any = await pytest_lsp.ClientServerConfig(server_command=COMMAND).start()
    client.set_configuration({"codegen2": {"maxTokens": 32}})
    params = types.InitializeParams(capabilities=pytest_lsp.client_capabilities(editor))
    assert params.capabilities.text_document is not None
    # None of the recorded versions knows the request yet.
    params.capabilities.text_document.inline_completion = types.InlineCompletionClientCapabilities()
    client.begun = await client.initialize_session(params)
    yield client
    await client.shutdown_session()
    status = client._server.returncode
    await client.stop()
    assert status == 0


def wanted(
    line: int, character: int, kind: types.InlineCompletionTriggerKind
) -> types.InlineCompletionParams:
    return types.InlineCompletionParams(
        types.InlineCompletionContext(kind),
        types.TextDocumentIdentifier(URI),
        types.Position(line, character),
    )


INVOKED, AUTOMATIC = types.InlineCompletionTriggerKind.Invoked, types.InlineCompletionTriggerKind.Automatic


# By default test_lsp.py asks a process (types, ends) and tries capabilities and cancelling in this one.
@pytest.mark.slow
@pytest.mark.parametrize("editor", EDITORS)
def test_pytest_lsp_opens_types_completes_cancels(editor: str) -> None:
    async def run() -> None:
        async with talking(editor) as client:
            await drive(client)

    asyncio.run(run())


async def drive(client: Any) -> None:
    capabilities = client.begun.capabilities
    assert capabilities.inline_completion_provider is not None
    offered = (client.capabilities.general and client.capabilities.general.position_encodings) or ["utf-16"]
    assert capabilities.position_encoding in offered
    client.text_document_did_open(
        types.DidOpenTextDocumentParams(types.TextDocumentItem(URI, "python", 1, TEXT))
    )
    found = await client.text_document_inline_completion_async(wanted(2, 11, INVOKED))
    (item,) = found.items
    assert item.insert_text.strip() and item.range.start == item.range.end == types.Position(2, 11)

    for version, key in enumerate("a +", start=2):  # typed
        at = types.Position(2, 9 + version)
        change = types.TextDocumentContentChangePartial(types.Range(at, at), key)
        client.text_document_did_change(
            types.DidChangeTextDocumentParams(types.VersionedTextDocumentIdentifier(version, URI), [change])
        )
        found = await client.text_document_inline_completion_async(wanted(2, 10 + version, AUTOMATIC))
    assert found is not None and "\n" not in found.items[0].insert_text
    assert found.items[0].range.start == types.Position(2, 14)

    whole = types.TextDocumentContentChangeWholeDocument(LONG)
    client.text_document_did_change(
        types.DidChangeTextDocumentParams(types.VersionedTextDocumentIdentifier(9, URI), [whole])
    )
    params = wanted(4000, 0, INVOKED)
    asked = asyncio.ensure_future(
        client.protocol.send_request_async("textDocument/inlineCompletion", params, "mine")
    )
    await asyncio.sleep(0)  # it is sent
    client.cancel_request(types.CancelParams("mine"))
    with pytest.raises(JsonRpcException) as e:
        await asyncio.wait_for(asked, 300)
    assert e.value.code == types.LSPErrorCodes.RequestCancelled
    assert await client.text_document_inline_completion_async(wanted(10, 0, INVOKED)) is not None
    assert client.error is None and client.messages == []


# By default test_serve_faults.py fills a real cache, and test_lsp.py shows what a load that failed says.
@pytest.mark.slow
@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs Linux")
def test_a_cache_that_cannot_be_written_is_said_in_the_editor(tmp_path: Any) -> None:
    client = Process(command=[sys.executable, "-c", LIMITED, "lsp"], env={"CODEGEN2_CACHE": str(tmp_path)})
    try:
        client.begin()
        client.open(TEXT)
        assert client.items(client.want(2, 11)) == []
        shown = [m["params"]["message"] for m in client.heard if m["method"] == "window/showMessage"]
        assert len(shown) == 1 and "set CODEGEN2_CACHE to a folder that can" in shown[0], shown
        assert left(tmp_path) == []
        most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.prlimit(client.process.pid, resource.RLIMIT_FSIZE, most)  # somebody made room
        assert client.items(client.want(2, 11))
        client.end()
        assert client.process.wait(300) == 0
    finally:
        client.close()
