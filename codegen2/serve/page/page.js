// The playground: a textarea whose text is shown by a layer above it, which also shows what the model would write.
// The layer has the ghost text in its place, the textarea does not: so a click below a ghost of several lines drops it.

const MARK = "<FILL>";
const PAUSE_MS = 350;
// Ordinary code; the model in the box fills these holes with what stood there.
const EXAMPLES = {
  python: `class Inventory:
    """All items, by name."""

    def __init__(self):
        self._items = {}

    def __contains__(self, name):
        return name in <FILL>

    def __getitem__(self, name):
        return self._items[name]

    def remove(self, name):
        if name not in <FILL>:
            raise KeyError(name)
        del <FILL>
`,
  javascript: `class Cart {
  constructor() {
    this.items = [];
  }

  add(item) {
    if (!item) {
      throw new Error("item is missing");
    }
    this.items.<FILL>
    return this;
  }

  total() {
    let total = 0;
    for (const item of this.<FILL>) {
      total += item.price * item.quantity;
    }
    return total;
  }
}
`,
  go: `package queue

import "errors"

// Queue is a list of names, first in, first out.
type Queue struct {
	names []string
}

func (q *Queue) Len() int {
	return len(q.<FILL>)
}

func (q *Queue) Push(name string) {
	q.names = append(q.names, name)
}

func (q *Queue) Pop() (string, error) {
	if len(<FILL>) == 0 {
		return "", errors.New("queue is empty")
	}
	name := q.names[0]
	q.names = q.names[1:]
	return name, nil
}
`,
  java: `import java.util.ArrayList;
import java.util.List;

public class Library {
    private final List<String> titles = new ArrayList<>();

    public void add(String title) {
        if (title == <FILL>) {
            throw new IllegalArgumentException("title is null");
        }
        titles.<FILL>
    }

    public boolean contains(String title) {
        return titles.contains(<FILL>);
    }
}
`,
  typescript: `export interface Task {
  id: number;
  title: <FILL>;
  done: boolean;
}

export class TaskList {
  private tasks: Task[] = [];

  add(task: Task): void {
    this.tasks.push(<FILL>);
  }

  find(id: number): Task | undefined {
    return this.tasks.find((task) => task.id === id);
  }
}
`,
};

const el = (id) => document.getElementById(id);
const code = el("code"), mirror = el("mirror"), statusLine = el("status"), errorLine = el("error"), tip = el("tip");
const session = crypto.randomUUID ? crypto.randomUUID() : String(Math.random()).slice(2);

let ghosts = []; // {at, length: characters of the text that it replaces, text, tokens, done}
let running = null; // the AbortController of what is being asked
let timer = 0;
let before = "";

// ---- showing

function render() {
  const text = code.value, parts = [];
  let at = 0;
  const plain = (upto) => {
    const piece = text.slice(at, upto);
    piece.split(MARK).forEach((part, i) => {
      if (i) parts.push(element("span", "hole", MARK));
      if (part) parts.push(document.createTextNode(part));
    });
    at = upto;
  };
  for (const ghost of ghosts) {
    if (ghost.at < at) continue;
    plain(ghost.at);
    parts.push(ghostElement(ghost));
    at = ghost.at + ghost.length;
  }
  plain(text.length);
  parts.push(document.createTextNode("\u200b")); // a last line end counts
  mirror.replaceChildren(...parts);
  const some = ghosts.some((ghost) => ghost.text);
  el("accept").disabled = !some;
  el("drop").disabled = !some && !running;
  renderTable();
}

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function ghostElement(ghost) {
  const made = element("span", "ghost");
  for (const piece of aligned(ghost)) {
    const part = element("span", piece.token && piece.token.p < 0.5 ? "doubt" : "", piece.text);
    if (piece.token) {
      part.addEventListener("pointerenter", (event) => showTip(event, piece.token));
      part.addEventListener("pointerleave", () => { tip.hidden = true; });
    }
    made.append(part);
  }
  made.addEventListener("pointerdown", (event) => { event.preventDefault(); });
  made.addEventListener("click", () => accept(ghost));
  return made;
}

// Tokens belong to the raw answer; what is shown may lack its beginning or its end.
function aligned(ghost) {
  const raw = ghost.tokens.map((t) => t.text).join("");
  let at = -Math.max(0, raw.indexOf(ghost.text));
  if (at === 0 && !ghost.text.startsWith(raw.slice(0, 1))) return [{ text: ghost.text }];
  const found = [];
  let shown = 0;
  for (const token of ghost.tokens) {
    const end = at + token.text.length;
    if (end > 0 && shown < ghost.text.length) {
      const text = ghost.text.slice(Math.max(at, 0), end);
      if (text !== token.text.slice(Math.max(0, -at)).slice(0, text.length)) break; // changed from here on
      found.push({ text, token });
      shown = Math.max(at, 0) + text.length;
    }
    at = end;
  }
  if (shown < ghost.text.length) found.push({ text: ghost.text.slice(shown) });
  return found;
}

const percent = (p) => (p >= 0.9995 ? "100 %" : `${(100 * p).toFixed(1)} %`);
const visible = (text) => JSON.stringify(text).slice(1, -1).replace(/\\"/g, '"').replace(/ /g, "\u00b7");

function showTip(event, token) {
  const lines = token.top.map(([text, p]) => `${percent(p).padStart(7)}  ${visible(text)}`);
  tip.textContent = `${visible(token.text)}  ${percent(token.p)}` + (lines.length ? "\n" + lines.join("\n") : "");
  tip.hidden = false;
  const box = event.target.getBoundingClientRect();
  const left = Math.min(box.left, window.innerWidth - tip.offsetWidth - 8);
  const below = box.bottom + 6 + tip.offsetHeight < window.innerHeight;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${below ? box.bottom + 6 : box.top - tip.offsetHeight - 6}px`;
}

function renderTable() {
  if (!el("details").open) return;
  const rows = ghosts.flatMap((ghost) => aligned(ghost)).filter((piece) => piece.token).map(({ token }) => {
    const row = element("tr");
    const others = token.top.filter(([text]) => text !== token.text);
    const instead = others.map(([text, p]) => `${visible(text)} ${percent(p)}`).join("   ");
    row.append(element("td", "", visible(token.text)), element("td", "", percent(token.p)), element("td", "", instead));
    return row;
  });
  el("table").replaceChildren(...rows);
}

function say(text) {
  statusLine.textContent = text;
}

function fail(text) {
  errorLine.textContent = text;
  errorLine.hidden = !text;
}

// ---- asking

function headers() {
  const key = el("key").value;
  return key ? { Authorization: `Bearer ${key}` } : {};
}

class Told extends Error {} // its message is for people

async function refused(answer) {
  const content = await answer.json().catch(() => null);
  const message = content && content.error && (content.error.message || content.error);
  return new Told(typeof message === "string" ? message : `the server answered ${answer.status}`);
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Told("the server broke off its answer");
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const content = JSON.parse(data);
      if (content.error) throw new Told(content.error.message || "the server failed");
      yield content;
    }
  }
}

function readTokens(logprobs) {
  return logprobs.tokens.map((text, i) => ({
    text: text.startsWith("bytes:") ? "" : text,
    p: Math.exp(logprobs.token_logprobs[i] ?? 0),
    top: Object.entries((logprobs.top_logprobs || [])[i] || {})
      .map(([other, logprob]) => [other, Math.exp(logprob)]).sort((a, b) => b[1] - a[1]),
  }));
}

function limited(id) { // what is out of its limits goes back into them, visibly
  const input = el(id), value = Number(input.value);
  const good = Math.min(Number(input.max), Math.max(Number(input.min), Number.isFinite(value) ? value : 0));
  const right = input.step === "1" ? Math.round(good) : good;
  if (String(right) !== input.value) input.value = right;
  return right;
}

async function fill(ghost, prefix, suffix, suggest, signal) {
  const started = performance.now();
  const took = { first: 0, tokens: 0, all: 0, timings: null };
  const body = {
    prompt: prefix, suffix, max_tokens: limited("tokens"), temperature: limited("temperature"), stream: true,
    stream_options: { include_usage: true }, logprobs: 4, stop_at: el("extent").value,
    language: el("language").value, suggest,
  };
  const answer = await fetch("v1/completions", {
    method: "POST", signal, body: JSON.stringify(body),
    headers: { "Content-Type": "application/json", "X-Session-Id": session, ...headers() },
  });
  if (!answer.ok) throw await refused(answer);
  for await (const content of events(answer)) {
    const choice = (content.choices || [])[0];
    if (choice) {
      if (choice.logprobs) ghost.tokens.push(...readTokens(choice.logprobs));
      if (choice.text && !took.first) took.first = performance.now() - started;
      ghost.text += choice.text || "";
      const unindent = (choice.codegen2 && choice.codegen2.unindent) || 0;
      if (unindent && !ghost.unindent && ghost.at >= unindent) {
        ghost.unindent = unindent;
        ghost.at -= unindent;
        ghost.length += unindent;
      }
      render();
    }
    if (content.usage) took.tokens = content.usage.completion_tokens;
    if (content.codegen2) took.timings = content.codegen2.timings;
  }
  took.all = performance.now() - started;
  ghost.done = true;
  return took;
}

function holesOf(text) {
  const found = [];
  for (let at = text.indexOf(MARK); at >= 0; at = text.indexOf(MARK, at + MARK.length)) found.push(at);
  return found;
}

const unmarked = (text) => text.split(MARK).join("");

async function complete(atCursor = false) { // at the cursor: unasked, so only what the model is sure enough of
  stop();
  fail("");
  const text = code.value, marks = atCursor ? [] : holesOf(text);
  const wanted = marks.length ? marks.map((at) => [at, MARK.length]) : [[code.selectionStart, 0]];
  const mine = (running = new AbortController());
  ghosts = [];
  say("writing");
  render();
  try {
    let prefix = "", from = 0, took = null, tokens = 0;
    for (const [at, length] of wanted) {
      prefix += unmarked(text.slice(from, at));
      from = at + length;
      const ghost = { at, length, text: "", tokens: [], done: false, unindent: 0 };
      ghosts.push(ghost);
      const one = await fill(ghost, prefix, unmarked(text.slice(from)), atCursor, mine.signal);
      if (mine.signal.aborted) return;
      prefix = prefix.slice(0, prefix.length - ghost.unindent) + ghost.text;
      tokens += one.tokens;
      took = took ? { ...one, first: took.first, all: took.all + one.all } : one;
    }
    running = null;
    ghosts = ghosts.filter((ghost) => ghost.text);
    report(took, tokens, wanted.length, atCursor);
  } catch (problem) {
    if (mine.signal.aborted) return;
    running = null;
    ghosts = ghosts.filter((ghost) => ghost.text && ghost.done);
    say("");
    fail(problem instanceof Told ? problem.message : "The server cannot be reached. Is codegen2 serve still running?");
    if (!(problem instanceof Told)) ask();
  }
  render();
}

function report(took, tokens, holes, unasked) {
  if (!ghosts.length) {
    say(unasked ? "Nothing that the model is sure of." : "Nothing to add here.");
    return;
  }
  const seconds = took.all / 1000;
  const known = took.timings ? took.timings.cached_n : 0;
  say(
    (holes > 1 ? `${ghosts.length} of ${holes} holes filled. ` : "") +
    `First text after ${Math.round(took.first)} ms; ${tokens} tokens in ${seconds.toFixed(2)} s` +
    (known ? `; ${known} tokens of the prompt were known.` : "."),
  );
  el("spoken").textContent = `Suggestion: ${ghosts.map((ghost) => ghost.text.trim()).join("; next hole: ")}`;
}

function stop() {
  clearTimeout(timer);
  if (running) running.abort();
  running = null;
}

// ---- the keyboard

function drop() {
  stop();
  ghosts = [];
  tip.hidden = true;
  say("");
  el("spoken").textContent = "";
  render();
}

function insert(at, length, text) {
  code.focus();
  code.setSelectionRange(at, at + length);
  // It is deprecated and the only way that undo knows of.
  if (!(text ? document.execCommand("insertText", false, text) : document.execCommand("delete"))) {
    code.setRangeText(text, at, at + length, "end");
  }
  code.setSelectionRange(at + text.length, at + text.length);
  before = code.value;
}

let accepting = false;

function accept(which) {
  const ghost = which || ghosts.find((one) => one.text);
  if (!ghost || !ghost.text) return;
  if (!ghost.done) stop();
  tip.hidden = true;
  accepting = true;
  insert(ghost.at, ghost.length, ghost.text);
  accepting = false;
  const grown = ghost.text.length - ghost.length;
  ghosts = ghosts.filter((one) => one !== ghost && (one.text || running));
  for (const one of ghosts) if (one.at > ghost.at) one.at += grown;
  if (running) drop(); // the holes after this one were asked of another text
  render();
  say(ghosts.length ? `${ghosts.length} more; Tab accepts the next.` : "Accepted.");
}

function typed() {
  if (accepting) return;
  const text = code.value, ghost = ghosts[0], at = code.selectionStart;
  const added = text.length - before.length;
  const along = ghosts.length === 1 && ghost.done && !ghost.length && added > 0 && at === ghost.at + added &&
    before === text.slice(0, ghost.at) + text.slice(at) && ghost.text.startsWith(text.slice(ghost.at, at));
  before = text;
  if (along && ghost.text.length > added) { // typed as it was suggested
    ghost.text = ghost.text.slice(added);
    ghost.at = at;
    render();
    return;
  }
  drop();
  fail("");
  if (el("auto").checked && !/^\w/.test(text.slice(at))) timer = setTimeout(() => complete(true), PAUSE_MS);
}

code.addEventListener("input", typed);
code.addEventListener("keydown", (event) => {
  if (event.isComposing) return;
  if (event.key === "Tab" && !event.shiftKey && ghosts.some((ghost) => ghost.text)) {
    event.preventDefault();
    accept();
  } else if (event.key === "Escape" && (ghosts.length || running || timer)) {
    event.preventDefault();
    drop();
  } else if ((event.key === "Enter" || event.key === " ") && event.ctrlKey) {
    event.preventDefault();
    complete();
  }
});
code.addEventListener("pointerdown", () => { if (ghosts.length && !running) drop(); });
code.addEventListener("keyup", (event) => {
  if (/^(Arrow|Home|End|Page)/.test(event.key) && ghosts.length === 1 && !ghosts[0].length &&
      code.selectionStart !== ghosts[0].at + ghosts[0].unindent) drop();
});
el("complete").addEventListener("click", () => { code.focus(); complete(); });
el("accept").addEventListener("click", () => accept());
el("drop").addEventListener("click", () => { drop(); code.focus(); });
el("hole").addEventListener("click", () => {
  drop();
  accepting = true;
  insert(code.selectionStart, code.selectionEnd - code.selectionStart, MARK);
  accepting = false;
  render();
});
el("language").addEventListener("change", () => {
  if (!Object.values(EXAMPLES).includes(code.value)) return; // what somebody wrote stays
  drop();
  insert(0, code.value.length, EXAMPLES[el("language").value]);
  drop();
});
el("settings").addEventListener("submit", (event) => event.preventDefault());
el("details").addEventListener("toggle", renderTable);
el("editor").addEventListener("scroll", () => { tip.hidden = true; });

// ---- the server

let asking = 0;

async function ask() {
  clearTimeout(asking);
  let text = "the server is away", again = 3000;
  try {
    const answer = await fetch("health", { cache: "no-store" });
    if (answer.ok) {
      again = 0;
      const models = await fetch("v1/models", { headers: headers() });
      const content = models.ok ? await models.json() : null;
      text = content ? content.data.map((one) => one.id).join(", ") : "ready; it wants an API key";
    } else {
      text = answer.status === 503 ? "the model is loading" : (await refused(answer)).message;
    }
  } catch {
    // away: as it says already
  }
  el("server").textContent = text;
  if (again) asking = setTimeout(ask, again);
}

el("key").addEventListener("change", ask);
code.value = before = EXAMPLES[el("language").value];
code.setSelectionRange(code.value.length, code.value.length);
render();
ask();
