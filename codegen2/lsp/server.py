"""The language server: inline completions over standard input and output, for editors that need no plugin then.

LSP 3.18, textDocument/inlineCompletion, on pygls. Not here: documents (documents.py), what is asked for at a cursor
(request.py), who answers (backend.py). Nothing but the protocol goes to standard output, and nobody's code into
logs.
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

from .._version import __version__
from ..api import Model
from ..loading import load
from ..serve.settings import Settings
from ..serve.worker import Busy, Stopping
from .backend import Backend, LocalBackend, RemoteBackend
from .documents import At, Document
from .request import Filling, Item, Selected, Spot, Wishes, hole_of, read_wishes

try:
    from lsprotocol import types
    from pygls.exceptions import JsonRpcException
    from pygls.lsp.server import LanguageServer
    from pygls.protocol import LanguageServerProtocol
except ModuleNotFoundError as e:
    raise ValueError(f"the language server needs {e.name}; install codegen2[lsp]") from e

_SECTION = "codegen2"
_SETTINGS_S = 3.0  # a client that does not answer what it was asked for is not waited for
_LOADING_S = 2.0  # an automatic request waits so long for a model that loads
_FAULTS = (ValueError, OSError, RuntimeError, Busy, Stopping)
OpenBackend = Callable[[Wishes], Backend]


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
        """Return what kind of fault it was; the message may hold somebody's code."""
        print(f"codegen2 lsp: {type(error).__name__}", file=sys.stderr)


class Inline:
    """Answer for one client: its documents, its settings, and who answers."""

    def __init__(self, open_backend: OpenBackend, wishes: Wishes) -> None:
        self.server = _Server("codegen2", __version__, protocol_cls=_Protocol)
        self._open_backend = open_backend
        self._base = self.wishes = wishes
        self._documents: dict[str, Document] = {}
        self._waiting: dict[str, asyncio.Task[Filling | None]] = {}
        self._id = uuid.uuid4()
        self._ended = False  # the client said shutdown
        self.status = 0
        self._backend: Backend | None = None
        self._loading: asyncio.Task[bool] | None = None
        self._begun = asyncio.Event()  # the settings are known and loading was begun
        self._told: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        manager = self.server.protocol.fm
        for method in (
            types.TEXT_DOCUMENT_DID_OPEN,
            types.TEXT_DOCUMENT_DID_CHANGE,
            types.TEXT_DOCUMENT_DID_CLOSE,
        ):
            manager.builtin_features.pop(method)  # pygls's documents miscount lines; see documents.py
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
            self._base = self.wishes

    async def initialized(self, params: types.InitializedParams) -> None:
        """Ask for settings, then load."""
        can = self.server.client_capabilities.workspace
        if can and can.did_change_configuration and can.did_change_configuration.dynamic_registration:
            self._later(self._register())
        await self._ask_settings()
        self._open()

    async def _register(self) -> None:
        wanted = types.Registration(
            str(uuid.uuid4()), types.WORKSPACE_DID_CHANGE_CONFIGURATION, {"section": _SECTION}
        )
        with contextlib.suppress(Exception):  # a client that cannot sends changes all the same, or none
            await self.server.client_register_capability_async(types.RegistrationParams([wanted]))

    def shutdown(self, params: None) -> None:
        """End what is going on."""
        self._ended = True
        self.close()

    def exit(self, params: None) -> None:
        """Note the exit status that the protocol wants: 1 without a shutdown before."""
        self.status = int(not self._ended)

    def close(self) -> None:
        """End what is going on."""
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    # ---- settings

    async def did_change_configuration(self, params: types.DidChangeConfigurationParams) -> None:
        """Take new settings, by asking where the client can answer."""
        before = self.wishes
        if self._can_ask():
            await self._ask_settings()
        elif isinstance(params.settings, dict):
            self._take(params.settings.get(_SECTION))
        if (before.model, before.server) != (self.wishes.model, self.wishes.server):
            self._open()

    def _can_ask(self) -> bool:
        workspace = self.server.client_capabilities.workspace
        return bool(workspace and workspace.configuration)

    async def _ask_settings(self) -> None:
        if not self._can_ask():
            return
        wanted = types.ConfigurationParams([types.ConfigurationItem(section=_SECTION)])
        try:
            async with asyncio.timeout(_SETTINGS_S):
                found = await self.server.workspace_configuration_async(wanted)
        except Exception as e:  # the client's fault, and no reason not to answer
            self._tell(f"the editor did not say its settings ({type(e).__name__})", types.MessageType.Warning)
            return
        if found:
            self._take(found[0])

    def _take(self, content: Any) -> None:
        self.wishes, wrong = read_wishes(content, self._base)
        for sentence in wrong:
            self._tell(sentence, types.MessageType.Warning)

    def _tell(self, sentence: str, kind: types.MessageType = types.MessageType.Error) -> None:
        """Show a sentence, the same one once."""
        if sentence not in self._told:
            self._told.add(sentence)
            self.server.window_show_message(types.ShowMessageParams(kind, f"codegen2: {sentence}"))

    # ---- who answers

    def _open(self) -> None:
        """Begin to load what the settings name."""
        self.close()
        if self._loading is not None:
            self._loading.cancel()
            self._loading = None
        self._told.clear()
        try:
            self._backend = self._open_backend(self.wishes)
        except _FAULTS as e:
            self._tell(_sentence(e))
            return
        finally:
            self._begun.set()
        self._loading = asyncio.ensure_future(self._start(self._backend))

    async def _start(self, backend: Backend) -> bool:
        """Load, showing progress; give whether it worked."""
        name = self.wishes.server or self.wishes.model or "the model"
        starting = asyncio.ensure_future(backend.start())
        try:
            async with _progress(self.server, f"codegen2: loading {name}"):
                await asyncio.wait({starting})
            starting.result()
        except _FAULTS as e:
            self._tell(_sentence(e))
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
                document.change(_at(change.range.start), _at(change.range.end), change.text)
            else:
                document.replace(change.text)

    def did_close(self, params: types.DidCloseTextDocumentParams) -> None:
        """Forget a document, and end what was asked of it."""
        self._documents.pop(params.text_document.uri, None)
        self._supersede(params.text_document.uri, None)

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
        spot = Spot.of(document, _at(params.position), _selected(params.context.selected_completion_info))
        task = asyncio.ensure_future(self._fill(spot, document.language, invoked, self._session(uri)))
        self._supersede(uri, task)
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:  # the client's $/cancelRequest
            task.cancel()
            raise
        finally:
            if self._waiting.get(uri) is task:
                del self._waiting[uri]
        filling = None if task.cancelled() else task.result()
        item = spot.item(filling) if filling else None
        return types.InlineCompletionList([_shown(item)]) if item else None

    def _session(self, uri: str) -> str:
        """Return a key that no other editor has for its document of this name."""
        return uuid.uuid5(self._id, ascii(uri)).hex

    def _supersede(self, uri: str, task: asyncio.Task[Filling | None] | None) -> None:
        """End an older request of the same document."""
        older = self._waiting.pop(uri, None)
        if older is not None:
            older.cancel()
        if task is not None:
            self._waiting[uri] = task

    async def _fill(self, spot: Spot, language: str, invoked: bool, session: str) -> Filling | None:
        if not invoked and spot.inside_word:
            return None
        if not invoked and self.wishes.debounce_ms:
            await asyncio.sleep(self.wishes.debounce_ms / 1000)
        if not await self._ready(invoked) or self._backend is None:
            return None
        if not invoked and not self.wishes.automatic:
            return None
        try:
            return await self._backend.fill(hole_of(spot, language, self.wishes, invoked, session))
        except _FAULTS as e:
            self._tell(_sentence(e))
            return None

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


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


def _at(position: types.Position) -> At:
    return At(position.line, position.character)


def _selected(info: types.SelectedCompletionInfo | None) -> Selected | None:
    return None if info is None else Selected(_at(info.range.start), _at(info.range.end), info.text)


def _shown(item: Item) -> types.InlineCompletionItem:
    start, end = (types.Position(at.line, at.character) for at in (item.start, item.end))
    return types.InlineCompletionItem(item.text, item.filter_text, types.Range(start, end))


def serve_io(open_backend: OpenBackend, wishes: Wishes, stdin: BinaryIO, stdout: BinaryIO) -> int:
    """Speak with one client until it says exit or goes away; give the exit status that the protocol wants."""
    inline = Inline(open_backend, wishes)
    logging.getLogger("pygls").setLevel(logging.CRITICAL)  # its logs quote messages, and so documents
    inline.server.start_io(stdin, stdout)
    inline.close()
    return inline.status


def run_lsp(args: argparse.Namespace) -> int:
    """Serve on standard input and output; whatever else would print there goes to standard error."""
    given = {"model": args.model, "server": args.server, "maxTokens": args.max_new_tokens}
    wishes, wrong = read_wishes(given, Wishes())
    if wrong:
        raise ValueError(wrong[0].removeprefix(f"{_SECTION}."))

    def open_backend(now: Wishes) -> Backend:
        if now.server:
            return RemoteBackend(now.server, now.model, os.environ.get("CODEGEN2_API_KEY", ""))

        def load_it() -> Model:
            return load(
                now.model or None, engine=args.engine, dtype=args.dtype, head_dtype=args.head_dtype,
                device=args.device, threads=args.threads, revision=args.revision,
                max_prompt_tokens=args.max_prompt_tokens, check=not args.no_check,
            )  # fmt: skip

        return LocalBackend(load_it, Settings(max_new_tokens=4096, cache_gib=args.cache_gib))

    open_backend(wishes).close()  # a wrong option is said here and now
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        return serve_io(open_backend, wishes, sys.stdin.buffer, out)
