"""The language server: inline completions over standard input and output, for editors that need no plugin then.

LSP 3.18, textDocument/inlineCompletion, on pygls. Not here: documents (documents.py), what is asked for at a cursor
(request.py), who answers (backend.py). Nothing but the protocol goes to standard output, nobody's code into logs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, BinaryIO

try:
    from lsprotocol import types
    from pygls.exceptions import JsonRpcException
    from pygls.lsp.server import LanguageServer
    from pygls.protocol import LanguageServerProtocol
except ModuleNotFoundError as e:
    raise ValueError(f"the language server needs {e.name}; install codegen2[lsp]") from e

from .._version import __version__
from ..generation.results import Choice
from ..generation.worker import Busy, Stopping
from ..loading import OPTIONS, from_args
from .backend import Backend, LocalBackend, RemoteBackend
from .documents import Document
from .request import Cursor, Settings, read_settings, request_at

_SECTION = "codegen2"
_SETTINGS_S = 3.0  # a client that does not answer what it was asked for is not waited for
_LOADING_S = 2.0  # an automatic request waits so long for a model that loads
_FAULTS = (ValueError, OSError, RuntimeError, Busy, Stopping)
OpenBackend = Callable[[Settings], Backend]
Sleep = Callable[[float], Coroutine[Any, Any, None]]


class _Protocol(LanguageServerProtocol):
    def structure_message(self, data: dict[str, Any]) -> Any:
        """Read a message; a request that is wrong is answered too, where pygls would leave the client waiting."""
        if "jsonrpc" in data and "method" in data and self.get_message_type(data["method"]) is None:
            data.setdefault("params", None)  # pygls wants some of methods that it does not know
        try:
            return super().structure_message(data)
        except JsonRpcException as e:
            if "method" in data and isinstance(data.get("id"), int | str):
                self._send_response(data["id"], error=e.to_response_error())
            raise


class _Server(LanguageServer):
    def report_server_error(self, error: Exception, source: Any) -> None:
        """Print the kind of fault alone; the message may hold somebody's code."""
        print(f"codegen2 lsp: {type(error).__name__}", file=sys.stderr)


class InlineCompletions:
    """Answer one client: its documents, its settings, and who answers. sleep: waits for a pause in typing."""

    def __init__(self, open_backend: OpenBackend, settings: Settings, sleep: Sleep = asyncio.sleep) -> None:
        self.server = _Server("codegen2", __version__, protocol_cls=_Protocol)
        self._open_backend, self._sleep = open_backend, sleep
        self._base = self.settings = settings
        self._documents: dict[str, Document] = {}
        self._waiting: dict[str, asyncio.Task[Choice | None]] = {}
        self._id = uuid.uuid4()
        self._shut_down = False
        self.status = 0
        self._backend: Backend | None = None
        self._loading: asyncio.Task[bool] | None = None
        self._begun = asyncio.Event()  # the settings are known and loading was begun
        self._shown: set[str] = set()
        manager = self.server.protocol.fm
        for method in ("didOpen", "didChange", "didClose"):
            manager.builtin_features.pop(
                f"textDocument/{method}"
            )  # pygls's documents miscount lines; see documents.py
        manager.feature_options[types.TEXT_DOCUMENT_INLINE_COMPLETION] = types.InlineCompletionOptions()
        # Methods take no attributes, which the decorator `feature` would set.
        manager.features.update(
            {
                types.INITIALIZE: self.initialize,
                types.INITIALIZED: self.initialized,
                types.SHUTDOWN: self.shutdown,
                types.EXIT: self.exit,
                types.TEXT_DOCUMENT_DID_OPEN: self.did_open,
                types.TEXT_DOCUMENT_DID_CHANGE: self.did_change,
                types.TEXT_DOCUMENT_DID_CLOSE: self.did_close,
                types.WORKSPACE_DID_CHANGE_CONFIGURATION: self.did_change_configuration,
                types.TEXT_DOCUMENT_INLINE_COMPLETION: self.inline_completion,
            }
        )

    # ---- beginning and end

    def initialize(self, params: types.InitializeParams) -> None:
        """Take the settings that came with the first message."""
        options = params.initialization_options
        if isinstance(options, dict):
            self._take(options.get(_SECTION, options))
            self._base = self.settings

    async def initialized(self, params: types.InitializedParams) -> None:
        """Ask for settings, then load."""
        can = self.server.client_capabilities.workspace
        if can and can.did_change_configuration and can.did_change_configuration.dynamic_registration:
            method = types.WORKSPACE_DID_CHANGE_CONFIGURATION
            registration = types.Registration(str(uuid.uuid4()), method, {"section": _SECTION})
            # Nobody waits for the reply: a client that cannot sends changes all the same, or none.
            self.server.client_register_capability(types.RegistrationParams([registration]))
        await self._ask_settings()
        self._open()

    def shutdown(self, params: None) -> None:
        """End what is going on."""
        self._shut_down = True
        self.close()

    def exit(self, params: None) -> None:
        """Set the exit status of the protocol: 1 without a shutdown before."""
        self.status = int(not self._shut_down)

    def close(self) -> None:
        """End what is going on."""
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    # ---- settings

    async def did_change_configuration(self, params: types.DidChangeConfigurationParams) -> None:
        """Take new settings, by asking where the client can answer."""
        before = self.settings
        if self._can_ask():
            await self._ask_settings()
        elif isinstance(params.settings, dict):
            self._take(params.settings.get(_SECTION))
        if (before.model, before.server) != (self.settings.model, self.settings.server):
            self._open()

    def _can_ask(self) -> bool:
        workspace = self.server.client_capabilities.workspace
        return bool(workspace and workspace.configuration)

    async def _ask_settings(self) -> None:
        if not self._can_ask():
            return
        params = types.ConfigurationParams([types.ConfigurationItem(section=_SECTION)])
        try:
            async with asyncio.timeout(_SETTINGS_S):
                sections = await self.server.workspace_configuration_async(params)
        except Exception as e:  # the client's fault, and no reason not to answer
            self._show(f"the editor did not say its settings ({type(e).__name__})", types.MessageType.Warning)
            return
        if sections:
            self._take(sections[0])

    def _take(self, content: Any) -> None:
        self.settings, wrong = read_settings(content, self._base)
        for sentence in wrong:
            self._show(sentence, types.MessageType.Warning)

    def _show(self, sentence: str, kind: types.MessageType = types.MessageType.Error) -> None:
        """Show a sentence, the same one once."""
        if sentence not in self._shown:
            self._shown.add(sentence)
            self.server.window_show_message(types.ShowMessageParams(kind, f"codegen2: {sentence}"))

    # ---- who answers

    def _open(self) -> None:
        """Begin to load what the settings name."""
        self.close()
        if self._loading is not None:
            self._loading.cancel()
            self._loading = None
        self._shown.clear()
        try:
            self._backend = self._open_backend(self.settings)
        except _FAULTS as e:
            self._show(_sentence(e))
            return
        finally:
            self._begun.set()
        self._loading = asyncio.ensure_future(self._start(self._backend))

    async def _start(self, backend: Backend) -> bool:
        """Load, showing progress; return whether it worked."""
        name = self.settings.server or self.settings.model or "the model"
        starting = asyncio.ensure_future(backend.start())
        try:
            async with _progress(self.server, f"codegen2: loading {name}"):
                await asyncio.wait({starting})
            starting.result()
        except _FAULTS as e:
            self._show(_sentence(e))
            return False
        finally:
            starting.cancel()
        return True

    async def _ready(self, invoked: bool) -> bool:
        """Wait for the model; a person who asked waits as long as it takes, and what failed is tried again."""
        try:
            async with asyncio.timeout(None if invoked else _LOADING_S):
                await self._begun.wait()
                if invoked and not _may_work(self._loading):
                    self._open()
                if self._loading is not None:
                    await asyncio.wait({self._loading})
        except TimeoutError:
            return False
        return self._loading is not None and self._loading.done() and _may_work(self._loading)

    # ---- documents

    def did_open(self, params: types.DidOpenTextDocumentParams) -> None:
        """Take a document in."""
        opened = params.text_document
        encoding = self.server.workspace.position_encoding
        encoding = str(getattr(encoding, "value", encoding))
        self._documents[opened.uri] = Document(opened.text, opened.language_id, encoding)

    def did_change(self, params: types.DidChangeTextDocumentParams) -> None:
        """Apply changes, in order."""
        document = self._documents.get(params.text_document.uri)
        if document is None:
            return
        for change in params.content_changes:
            if isinstance(change, types.TextDocumentContentChangePartial):
                document.change(change.range.start, change.range.end, change.text)
            else:
                document.replace(change.text)

    def did_close(self, params: types.DidCloseTextDocumentParams) -> None:
        """Forget a document, and end what was asked of it."""
        self._documents.pop(params.text_document.uri, None)
        self._end_older(params.text_document.uri)

    # ---- completions

    async def inline_completion(
        self, params: types.InlineCompletionParams
    ) -> types.InlineCompletionList | None:
        """Answer one request; null where there is nothing to show, or a newer one of the document came."""
        uri = params.text_document.uri
        document = self._documents.get(uri)
        if document is None:
            return None
        invoked = params.context.trigger_kind is types.InlineCompletionTriggerKind.Invoked
        # The text as it is now: what comes while we wait belongs to a newer request.
        cursor = Cursor.of(document, params.position, params.context.selected_completion_info)
        session = uuid.uuid5(
            self._id, ascii(uri)
        ).hex  # which no other editor has for its document of this name
        self._end_older(uri)
        task = self._waiting[uri] = asyncio.ensure_future(self._complete(cursor, invoked, session))
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:  # the client's $/cancelRequest
            task.cancel()
            raise
        finally:
            if self._waiting.get(uri) is task:
                del self._waiting[uri]
        choice = None if task.cancelled() else task.result()
        item = cursor.item(choice) if choice else None
        return types.InlineCompletionList([item]) if item else None

    def _end_older(self, uri: str) -> None:
        """End a request for this document."""
        if older := self._waiting.pop(uri, None):
            older.cancel()

    async def _complete(self, cursor: Cursor, invoked: bool, session: str) -> Choice | None:
        if not invoked and cursor.inside_word:
            return None
        if not invoked and self.settings.debounce_ms:
            await self._sleep(self.settings.debounce_ms / 1000)
        backend = self._backend if await self._ready(invoked) else None
        if backend is None or not (invoked or self.settings.automatic):
            return None
        try:
            return await backend.complete(request_at(cursor, self.settings, invoked=invoked, session=session))
        except _FAULTS as e:
            self._show(_sentence(e))
            return None


@contextlib.asynccontextmanager
async def _progress(server: LanguageServer, title: str) -> AsyncIterator[None]:
    """Show that something goes on, where the client can."""
    window = server.client_capabilities.window
    token = str(uuid.uuid4())
    shown = False
    if window and window.work_done_progress:
        with contextlib.suppress(Exception):  # a client that refuses shows nothing
            async with asyncio.timeout(_SETTINGS_S):
                await server.work_done_progress.create_async(token)
            shown = True
    if shown:
        server.work_done_progress.begin(token, types.WorkDoneProgressBegin(title, cancellable=False))
    try:
        yield
    finally:
        if shown:
            server.work_done_progress.end(token, types.WorkDoneProgressEnd())


def _may_work(loading: asyncio.Task[bool] | None) -> bool:
    """Return whether a model loads or has loaded."""
    return loading is not None and not (loading.done() and (loading.cancelled() or not loading.result()))


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def serve_io(
    open_backend: OpenBackend,
    settings: Settings,
    stdin: BinaryIO,
    stdout: BinaryIO,
    sleep: Sleep = asyncio.sleep,
) -> int:
    """Answer one client until it says exit or goes away; return the exit status of the protocol."""
    completions = InlineCompletions(open_backend, settings, sleep)
    logging.getLogger("pygls").setLevel(logging.CRITICAL)  # its logs quote messages, and so documents
    completions.server.start_io(stdin, stdout)
    completions.close()
    return completions.status


def run_lsp(args: argparse.Namespace) -> int:
    """Serve on standard input and output; whatever else would print there goes to standard error."""
    options = {"model": args.model, "server": args.server, "maxTokens": args.max_new_tokens}
    settings, wrong = read_settings(options, Settings())
    if wrong:
        raise ValueError(wrong[0].removeprefix(f"{_SECTION}."))
    if not 0 <= args.cache_gib < 1e6:
        raise ValueError(f"--cache-gib must be from 0 to 1,000,000, got {args.cache_gib:g}")

    def open_backend(now: Settings) -> Backend:
        if now.server:
            if given := [n for n in (*OPTIONS, "no_check") if getattr(args, n) not in (None, "cpu", False)]:
                what = ", ".join("--" + name.replace("_", "-") for name in given)
                raise ValueError(f"{what}: the model runs at {now.server}; give that to codegen2 serve there")
            return RemoteBackend(now.server, now.model, os.environ.get("CODEGEN2_API_KEY", ""))
        chosen = argparse.Namespace(**{**vars(args), "model": now.model or None})
        return LocalBackend(lambda: from_args(chosen, cache_gib=args.cache_gib))

    open_backend(settings).close()  # a wrong option is said here and now
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        return serve_io(open_backend, settings, sys.stdin.buffer, out)
