"use strict";
// The sample browser. Texts reach the page by textContent only, so code in them stays text.
(function () {
  const PAGE = 50;
  const data = JSON.parse(document.getElementById("samples").textContent);
  const field = {};
  data.fields.forEach((name, i) => { field[name] = i; });
  const get = (row, name) => row[field[name]];
  const byId = (id) => document.getElementById(id);
  const search = byId("search"), verdict = byId("verdict"), category = byId("category"), order = byId("order");
  const list = byId("list"), detail = byId("detail"), count = byId("count"), previous = byId("previous"), next = byId("next");
  let found = data.rows, page = 0, current = null;

  // What all names begin with, up to a slash, would only push the rest out of a narrow list.
  let shared = data.rows.length > 1 ? get(data.rows[0], "task_id") : "";
  for (const row of data.rows) while (!get(row, "task_id").startsWith(shared)) shared = shared.slice(0, -1);
  shared = shared.slice(0, shared.lastIndexOf("/") + 1);

  function parts(row) {
    const program = get(row, "program");
    if (program === null) return { prompt: null, expected: null, suffix: null };
    const text = data.programs[program], start = get(row, "start"), end = get(row, "end");
    return { prompt: text.slice(0, start), expected: text.slice(start, end), suffix: text.slice(end) };
  }
  const shownText = (row) => get(row, "shown") === null ? get(row, "raw") : get(row, "shown");
  const passed = (row) => get(row, "passed_shown") === null ? get(row, "passed_raw") : get(row, "passed_shown");
  const exact = (row) => get(row, "exact_shown") === null ? get(row, "exact_raw") : get(row, "exact_shown");
  const edit = (row) => get(row, "edit_shown") === null ? get(row, "edit_raw") : get(row, "edit_shown");
  const good = (row) => passed(row) === null ? exact(row) : passed(row);

  const tests = {
    all: () => true,
    good: (row) => good(row) === true,
    bad: (row) => good(row) === false,
    differ: (row) => get(row, "passed_raw") !== null && get(row, "passed_shown") !== null
      && get(row, "passed_raw") !== get(row, "passed_shown"),
    near: (row) => good(row) === false && edit(row) !== null && edit(row) >= 0.8,
    length: (row) => get(row, "finish_reason") === "length",
  };

  function matches(row, words) {
    if (!words) return true;
    const program = get(row, "program");
    return ["task_id", "raw", "shown", "result_raw", "result_shown"].some((name) => {
      const text = get(row, name);
      return text !== null && text.toLowerCase().includes(words);
    }) || (program !== null && data.programs[program].toLowerCase().includes(words));
  }

  function refresh() {
    const words = search.value.toLowerCase();
    found = data.rows.filter((row) => tests[verdict.value](row)
      && (!category || category.value === "" || get(row, "category") === category.value) && matches(row, words));
    const keys = { edit: (row) => edit(row), latency: (row) => -(get(row, "latency_s") || 0) };
    const key = keys[order.value];
    if (key) found = found.slice().sort((a, b) => (key(a) === null ? 2 : key(a)) - (key(b) === null ? 2 : key(b)));
    page = 0;
    draw();
    if (!found.length) { current = null; detail.replaceChildren(); }
    else if (!found.includes(current)) open(found[0]);
  }

  function element(name, className, text) {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function flag(value) {
    return element("span", "flag " + (value === null ? "" : value ? "pass" : "fail"),
      value === null ? "–" : value ? "pass" : "fail");
  }

  function draw() {
    list.replaceChildren();
    for (const row of found.slice(page * PAGE, (page + 1) * PAGE)) {
      const item = element("li"), button = element("button");
      button.type = "button";
      button.append(flag(good(row)), element("span", "", get(row, "task_id").slice(shared.length) + (data.several ? " #" + get(row, "sample") : "")));
      button.setAttribute("aria-current", String(row === current));
      button.addEventListener("click", () => { open(row); });
      item.append(button);
      button.sample = row;
      list.append(item);
    }
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    count.textContent = found.length.toLocaleString("en") + (found.length === 1 ? " sample" : " samples")
      + ", page " + (page + 1) + " of " + pages;
    previous.disabled = page === 0;
    next.disabled = page + 1 >= pages;
  }

  function block(heading, text, compare) {
    const box = element("div"), head = element("div", "head"), pre = element("pre");
    head.append(element("h3", "", heading));
    if (compare === undefined || compare === null) pre.textContent = text;
    else differences(pre, text, compare);
    box.append(head, pre);
    pre.tabIndex = 0;
    pre.setAttribute("aria-label", heading);
    if (text.split("\n").length > 12) {
      const button = element("button", "", "whole text");
      button.type = "button";
      button.addEventListener("click", () => {
        button.textContent = pre.classList.toggle("all") ? "fold" : "whole text";
      });
      head.append(button);
    }
    return box;
  }

  // Marks what lies between the beginning and the end that two texts share.
  function differences(pre, text, other) {
    const least = Math.min(text.length, other.length);
    let a = 0, b = 0;
    while (a < least && text[a] === other[a]) a++;
    while (b < least - a && text[text.length - 1 - b] === other[other.length - 1 - b]) b++;
    pre.append(text.slice(0, a));
    if (a < text.length - b) pre.append(element("mark", "", text.slice(a, text.length - b)));
    pre.append(text.slice(text.length - b));
  }

  function verdictLine(row, variant) {
    const result = get(row, "result_" + variant), pass = get(row, "passed_" + variant);
    const same = get(row, "exact_" + variant), near = get(row, "edit_" + variant);
    if (result === null && pass === null && same === null && near === null) return null;
    const line = element("p", "facts");
    line.append(variant + ": ");
    if (pass !== null) line.append(element("span", pass ? "pass" : "fail", result || (pass ? "passed" : "failed")));
    const more = [];
    if (same !== null) more.push(same ? "exact match" : "no exact match");
    if (near !== null) more.push("edit similarity " + near.toFixed(2));
    line.append((pass !== null && more.length ? ", " : "") + more.join(", "));
    return line;
  }

  function open(row) {
    current = row;
    for (const button of list.querySelectorAll("button")) button.setAttribute("aria-current", String(button.sample === row));
    detail.replaceChildren();
    const facts = [];
    if (get(row, "category") !== null) facts.push(get(row, "category"));
    if (get(row, "finish_reason") !== null) facts.push("ended by " + get(row, "finish_reason"));
    if (get(row, "tokens") !== null) facts.push(get(row, "tokens") + " tokens");
    if (get(row, "latency_s") !== null) facts.push((get(row, "latency_s") * 1000).toFixed(0) + " ms");
    detail.append(element("h3", "", get(row, "task_id") + (data.several ? ", sample " + get(row, "sample") : "")),
      element("p", "facts", facts.join(" · ")));
    for (const variant of ["raw", "shown"]) {
      const line = verdictLine(row, variant);
      if (line) detail.append(line);
    }
    const text = parts(row), shown = shownText(row), pair = element("div", "pair");
    if (text.expected !== null) pair.append(block(text.suffix ? "Expected" : "Reference", text.expected));
    if (shown !== null) pair.append(block(get(row, "shown") === null ? "Answer" : "Shown", shown, text.expected));
    if (get(row, "raw") !== null && get(row, "shown") !== null && get(row, "raw").trimEnd() !== shown.trimEnd())
      pair.append(block("Raw", get(row, "raw"), text.expected));
    detail.append(pair);
    if (text.prompt !== null) {
      const before = block(text.suffix ? "Text before" : "Prompt", text.prompt), pre = before.querySelector("pre");
      detail.append(before);
      pre.scrollTop = pre.scrollHeight;
      if (text.suffix) detail.append(block("Text after", text.suffix));
    }
  }

  let timer = 0;
  search.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(refresh, 120); });
  for (const choice of [verdict, category, order]) if (choice) choice.addEventListener("change", refresh);
  previous.addEventListener("click", () => { page--; draw(); list.scrollTop = 0; });
  next.addEventListener("click", () => { page++; draw(); list.scrollTop = 0; });
  refresh();
})();
