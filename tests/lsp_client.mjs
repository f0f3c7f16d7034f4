// Drives a language server by the libraries that VS Code's clients are made of: node lsp_client.mjs NODE_MODULES COMMAND...
import { spawn } from "node:child_process";
import { createRequire } from "node:module";
import { join } from "node:path";

const [modules, ...command] = process.argv.slice(2);
const require = createRequire(join(modules, "x.js"));
const lsp = require("vscode-languageserver-protocol/node");

const server = spawn(command[0], command.slice(1), { stdio: ["pipe", "pipe", "inherit"] });
const connection = lsp.createProtocolConnection(
  new lsp.StreamMessageReader(server.stdout), new lsp.StreamMessageWriter(server.stdin));
connection.onRequest(lsp.ConfigurationRequest.type, () => [{ maxTokens: 32 }]);
connection.onRequest(lsp.RegistrationRequest.type, () => null);
connection.onRequest(lsp.WorkDoneProgressCreateRequest.type, () => null);
connection.listen();

const uri = "file:///a.py";
const begun = await connection.sendRequest(lsp.InitializeRequest.type, {
  processId: process.pid, rootUri: null, workspaceFolders: null,
  capabilities: {
    general: { positionEncodings: ["utf-16"] },
    workspace: { configuration: true, didChangeConfiguration: { dynamicRegistration: true } },
    window: { workDoneProgress: true },
    textDocument: { inlineCompletion: { dynamicRegistration: false } },
  },
});
await connection.sendNotification(lsp.InitializedNotification.type, {});
const text = "def add(a, b):\n    return \n";
await connection.sendNotification(lsp.DidOpenTextDocumentNotification.type,
  { textDocument: { uri, languageId: "python", version: 1, text } });
const params = {
  textDocument: { uri }, position: { line: 1, character: 11 },
  context: { triggerKind: lsp.InlineCompletionTriggerKind.Invoked },
};
const answer = await connection.sendRequest(lsp.InlineCompletionRequest.type, params);

// A long prompt, so that there is something to cancel.
const long = Array.from({ length: 4000 }, (_, i) => `value_${i} = compute(${i}, other=${i * 7})\n`).join("");
await connection.sendNotification(lsp.DidChangeTextDocumentNotification.type,
  { textDocument: { uri, version: 2 }, contentChanges: [{ text: long }] });
const source = new lsp.CancellationTokenSource();
const pending = connection.sendRequest(lsp.InlineCompletionRequest.type,
  { ...params, position: { line: 4000, character: 0 } }, source.token);
setTimeout(() => source.cancel(), 5);
const cancelled = await pending.then(() => 0, (error) => error.code);

await connection.sendRequest(lsp.ShutdownRequest.type);
await connection.sendNotification(lsp.ExitNotification.type);
const status = await new Promise((resolve) => server.on("exit", resolve));
console.log(JSON.stringify({
  provider: begun.capabilities.inlineCompletionProvider !== undefined,
  encoding: begun.capabilities.positionEncoding,
  items: answer.items.length, range: answer.items[0].range, cancelled, status,
}));
process.exit(0);
