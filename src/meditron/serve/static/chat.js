// The chat page. The server keeps every conversation; this script shows one path of it and sends requests.
// Text of people and models is inserted as text. The only HTML is that of finished answers, which the server
// has sanitized, and the page's Content-Security-Policy allows no scripts in it.

import { noteNode, provenanceNode } from "./chat_facts.js";
import { $, ServerError, action, announce, announceSentences, ask, button, checked, element, json, readEvents, request } from "./chat_page.js";

const SAMPLING = ["temperature", "top_p", "max_tokens", "seed", "presence_penalty", "frequency_penalty"];
const NEAR_END = 80; // pixels: a reader who has scrolled further up is not moved by new text

let models = [];
let prompts = [];
let view = null; // the conversation that is shown, as the server describes it
let chosenPrompt = null; // name and version of the stored prompt in the system prompt
const running = new Map(); // id of an answer that is being generated → what has come so far

// ---- one message

function messageNode(message, column = false) {
  const answer = message.answer;
  const body = element("div", { className: "text" });
  if (!answer) body.append(message.text);
  else if (running.has(message.id)) body.append(running.get(message.id).text);
  else body.innerHTML = message.html;
  const node = element(
    "article",
    { "data-role": message.role, "data-state": message.state, "data-id": message.id },
    element("h2", {}, answer ? answer.model : "You"),
    body,
    answer ? noteNode(message, running.has(message.id)) : null,
    answer ? provenanceNode(message) : null,
    toolsNode(message, column),
  );
  if (running.has(message.id)) {
    node.classList.add("waiting");
    node.querySelector(".gauge").textContent = "waiting for the model";
  }
  return node;
}

function toolsNode(message, column) {
  const tools = element("div", { className: "tools" });
  const position = message.siblings.indexOf(message.id);
  if (message.siblings.length > 1 && !column) {
    const go = (step) => action(() => change({ shown: message.siblings[position + step] }, message.id, step));
    tools.append(
      button("‹", go(-1), { ariaLabel: "Previous version", disabled: position === 0 }),
      element("span", {}, `${position + 1} / ${message.siblings.length}`),
      button("›", go(1), { ariaLabel: "Next version", disabled: position === message.siblings.length - 1 }),
    );
  }
  if (message.role === "user") {
    tools.append(button("Edit", () => edit(message), { "data-action": "edit" }));
    if (message.id === view.leaf) tools.append(button("Answer", action(() => send({ parent: message.id }))));
    return tools;
  }
  tools.append(
    button("Regenerate", action(() => send({ parent: message.parent }))),
    button("Copy", action(() => copy(message))),
  );
  if (column) tools.append(continueButton(message));
  else if (message.id !== view.leaf) tools.append(button("Branch", action(() => branch(message))));
  return tools;
}

function continueButton(message) {
  const pressed = message.id === view.leaf;
  const text = pressed ? "Continuing with this answer" : "Continue with this answer";
  return button(text, action(() => change({ leaf: message.id })), { ariaPressed: String(pressed) });
}

async function copy(message) {
  await navigator.clipboard.writeText(message.text);
  announce("Copied.");
}

async function branch(message) {
  await change({ leaf: message.id });
  $("box").focus();
}

// ---- the conversation

function showView(next) {
  view = next;
  $("title").textContent = view ? view.title : "New chat";
  document.title = `${view ? view.title : "Chat"} · meditron`;
  $("actions").hidden = !view;
  $("intro").hidden = Boolean(view?.messages.length);
  if (view) {
    $("export-md").href = `/chat/conversations/${view.id}/export.md`;
    $("export-json").href = `/chat/conversations/${view.id}/export.json`;
  }
  const path = view?.messages ?? [];
  const columns = view?.columns ?? [];
  const single = columns.length ? path.slice(0, -1) : path;
  $("messages").replaceChildren(...single.map((message) => messageNode(message)));
  if (columns.length) {
    $("messages").append(element("div", { className: "columns" }, ...columns.map((m) => messageNode(m, true))));
  }
  if (view?.later) {
    const later = action(() => change({ shown: view.later }));
    $("messages").append(button("Show the later messages", later, { className: "quiet later" }));
  }
  showContext();
  markCurrent();
}

function showSettings(settings) {
  const [first, second] = settings.models ?? [];
  if (models.some((model) => model.id === first)) $("model").value = first;
  $("second").value = models.some((model) => model.id === second) ? second : "";
  $("system").value = settings.system ?? "";
  for (const name of SAMPLING) $(name).value = settings.sampling?.[name] ?? "";
  chosenPrompt = settings.prompt ?? null;
  $("prompt").value = chosenPrompt ? promptKey(chosenPrompt) : "";
  showBaseNotice();
}

// How much of the context the shown path fills, from its last answer with numbers.
function showContext() {
  const shown = [...(view?.messages ?? [])].reverse().find((message) => message.answer?.output_tokens != null);
  const context = shown?.answer.provenance.context;
  $("context").hidden = !context;
  if (!context) return;
  const share = Math.min(1, ((shown.answer.input_tokens ?? 0) + shown.answer.output_tokens) / context);
  $("context-text").textContent = `Context ${Math.round(share * 100)} %`;
  $("context-meter").value = share;
}

async function change(body, focusId = null, step = 0) {
  showView(await json(`conversations/${view.id}`, "PATCH", body));
  if (focusId === null) return;
  // The focus stays at the button, which belongs to another message now.
  const names = step < 0 ? ["Previous version", "Next version"] : ["Next version", "Previous version"];
  const position = view.messages.findIndex((message) => message.siblings.includes(focusId));
  const node = nodeOf(view.messages[position]?.id);
  const target = names.map((name) => node?.querySelector(`[aria-label="${name}"]:enabled`)).find(Boolean);
  target?.focus();
}

const nodeOf = (id) => document.querySelector(`[data-id="${Number(id)}"]`);

async function open(id) {
  if (!id) {
    showView(null);
    return;
  }
  showView(await json(`conversations/${encodeURIComponent(id)}`));
  showSettings(view.settings);
  scrollToEnd();
}

// ---- sending and streaming

function settings() {
  const sampling = {};
  for (const name of SAMPLING) if ($(name).value !== "") sampling[name] = Number($(name).value);
  const second = $("second").value;
  return {
    models: second && second !== $("model").value ? [$("model").value, second] : [$("model").value],
    system: $("system").value,
    sampling,
    prompt: chosenPrompt,
  };
}

// Sends a question, or asks for another answer. Returns true once the server has stored it.
async function send(question) {
  if (running.size) return false;
  const body = { conversation: view?.id ?? null, ...settings(), ...question };
  let response = await request("send", "POST", body);
  if (response.status === 409) {
    const { findings } = await response.json();
    if (!(await confirmFindings(findings))) return false;
    response = await request("send", "POST", { ...body, confirmed: true });
  }
  await checked(response);
  let id = null;
  try {
    for await (const [name, data] of readEvents(response)) {
      if (name === "start") id = started(data.view);
      else if (name === "error") throw new ServerError(data.error.message);
      else if (view?.id !== id) running.delete(data.id); // another conversation was opened meanwhile
      else if (name === "piece") addPiece(data);
      else finished(data);
    }
  } finally {
    const lost = running.size > 0;
    running.clear();
    showRunning();
    // After a lost connection the server has stored what it had.
    if (lost && view?.id === id) await open(id).catch(() => showView(view));
  }
  return id !== null;
}

function started(next) {
  const answers = next.columns.length ? next.columns : next.messages.slice(-1);
  for (const { id } of answers) running.set(id, { text: "", pieces: 0, first: 0 });
  showRunning();
  showView(next);
  if (location.hash.slice(1) !== view.id) history.pushState(null, "", `#${view.id}`);
  announce(`${answers.map((message) => message.answer.model).join(" and ")} is answering.`);
  scrollToEnd();
  action(listConversations)();
  return view.id;
}

function addPiece({ id, text }) {
  const progress = running.get(id);
  const node = nodeOf(id);
  if (!progress || !node) return;
  const follow = isAtEnd();
  progress.text += text;
  progress.pieces += 1;
  progress.first ||= performance.now();
  node.querySelector(".text").append(text);
  const seconds = (performance.now() - progress.first) / 1000;
  const speed = seconds > 0.5 ? ` · about ${(progress.pieces / seconds).toFixed(1)} tokens/s` : "";
  node.querySelector(".gauge").textContent = `about ${progress.pieces} tokens${speed}`;
  if (follow) scrollToEnd();
  if (running.keys().next().value === id) announceSentences(progress);
}

function finished(message) {
  const follow = isAtEnd();
  const progress = running.get(message.id);
  running.delete(message.id);
  const replace = (list) => list.map((each) => (each.id === message.id ? message : each));
  view = { ...view, messages: replace(view.messages), columns: replace(view.columns) };
  nodeOf(message.id)?.replaceWith(messageNode(message, view.columns.length > 0));
  showContext();
  showRunning();
  const rest = message.text.slice(progress?.announced ?? 0);
  const end = { done: "End of the answer.", stopped: "Stopped.", failed: "The answer failed." }[message.state];
  announce(running.size ? "" : `${rest} ${end}`);
  if (follow) scrollToEnd();
}

function showRunning() {
  const busy = running.size > 0;
  $("stop").hidden = !busy;
  $("send").hidden = busy;
  $("messages").ariaBusy = String(busy);
}

async function stop() {
  const ids = [...running.keys()];
  await Promise.all(ids.map((id) => json(`conversations/${view.id}/answers/${id}/stop`, "POST", {})));
  $("box").focus();
}

async function submit() {
  const box = $("box");
  const text = box.value.trim();
  if (!text || running.size) return;
  const last = view?.messages.at(-1);
  const parent = last?.role === "user" ? last.parent : (view?.leaf ?? null);
  box.value = "";
  resizeBox();
  let stored = false;
  try {
    stored = await send({ text, parent });
  } finally {
    if (!stored && !box.value) box.value = text;
    resizeBox();
    box.focus();
  }
}

function edit(message) {
  const node = nodeOf(message.id);
  if (!node || running.size) return;
  const cancel = () => {
    node.replaceWith(messageNode(message));
    nodeOf(message.id).querySelector("[data-action=edit]").focus();
  };
  const save = action(async () => {
    const text = area.value.trim();
    if (text && (await send({ text, parent: message.parent }))) $("box").focus();
  });
  const area = element("textarea", { value: message.text, ariaLabel: "Edit the question", rows: 3 });
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") cancel();
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      save();
    }
  });
  const tools = element("div", { className: "tools" }, button("Send", save), button("Cancel", cancel));
  node.replaceChildren(element("h2", {}, "You"), area, tools);
  area.focus();
}

// ---- dialogs

function confirmFindings(findings) {
  const items = findings.map(({ kind, text }) => element("li", {}, `${kind}: `, element("q", {}, text)));
  return ask(
    "This looks like personal health data",
    [
      element("p", {}, "The text seems to contain:"),
      element("ul", {}, ...items),
      element("p", {}, "Remove what identifies a person. If you send it, the text goes to the model and is stored in the history."),
    ],
    "Send anyway",
    "Back to the text",
  );
}

async function rename() {
  const input = element("input", { type: "text", value: view.title, maxLength: 80 });
  const label = element("label", { className: "whole" }, "Title ", input);
  if (await ask("Rename the conversation", [label], "Rename")) await change({ title: input.value });
  await listConversations();
  $("rename").focus();
}

async function remove() {
  const text = `“${view.title}” and all its versions are deleted from the server.`;
  if (!(await ask("Delete the conversation?", [element("p", {}, text)], "Delete"))) return;
  if (running.size) await stop();
  await json(`conversations/${view.id}`, "DELETE");
  await startNew();
  await listConversations();
}

// ---- list of conversations

async function listConversations() {
  const query = $("search").value;
  const { conversations } = await json(`conversations?query=${encodeURIComponent(query)}`);
  if (query !== $("search").value) return; // an answer to an earlier search
  $("list").replaceChildren(...conversations.map(conversationNode));
  $("list-empty").hidden = conversations.length > 0;
  $("list-empty").textContent = query ? "No conversation has these words." : "No conversations yet.";
  markCurrent();
}

function conversationNode({ id, title, snippet }) {
  const parts = snippet.map(([text, found]) => (found ? element("mark", {}, text) : text));
  return element(
    "li",
    {},
    element("a", { href: `#${id}` }, title, parts.length ? element("span", { className: "snippet" }, ...parts) : null),
  );
}

function markCurrent() {
  for (const link of $("list").querySelectorAll("a")) {
    if (view && link.hash === `#${view.id}`) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}

async function startNew() {
  if (running.size) await stop();
  history.pushState(null, "", location.pathname);
  showView(null);
  toggleSide(false);
  $("box").focus();
}

function toggleSide(shown) {
  $("side").classList.toggle("shown", shown);
  $("menu").ariaExpanded = String(shown);
}

// ---- models, prompts, settings

async function loadModels() {
  ({ models, prompts } = await json("models"));
  const options = () => models.map(({ id }) => element("option", { value: id }, id));
  $("model").replaceChildren(...options());
  $("second").replaceChildren(element("option", { value: "" }, "no second model"), ...options());
  $("second-field").hidden = models.length < 2;
  $("prompt-label").hidden = prompts.length === 0;
  $("prompt").replaceChildren(
    element("option", { value: "" }, "none"),
    ...prompts.map((prompt) => element("option", { value: promptKey(prompt) }, promptName(prompt))),
  );
  showBaseNotice();
}

const promptKey = ({ name, label, version }) => [name, label ?? "", version].join("\n");
const promptName = ({ name, label, version }) => `${name} (${label ?? version.slice(0, 12)})`;

function choosePrompt() {
  const prompt = prompts.find((each) => promptKey(each) === $("prompt").value);
  chosenPrompt = prompt ? { name: prompt.name, label: prompt.label, version: prompt.version } : null;
  $("system").value = prompt ? prompt.text : "";
}

function showBaseNotice() {
  const chosen = [$("model").value, $("second").value];
  const base = models.filter(({ id, has_chat_template }) => chosen.includes(id) && has_chat_template === false);
  $("base-notice").hidden = base.length === 0;
  const names = base.map(({ id }) => id).join(" and ");
  $("base-notice").textContent =
    `${names}: a base model without a chat template. Questions are put into a one-shot medical prompt, so that it answers and does not continue or repeat the question.`;
}

function toggleSettings() {
  const shown = $("settings").hidden;
  $("settings").hidden = !shown;
  $("settings-toggle").ariaExpanded = String(shown);
}

// ---- scrolling

const isAtEnd = () => $("log").scrollHeight - $("log").scrollTop - $("log").clientHeight < NEAR_END;

function scrollToEnd() {
  $("log").scrollTop = $("log").scrollHeight;
}

function resizeBox() {
  // Inline styles are forbidden by the page's policy; the number of rows is an attribute.
  const lines = $("box").value.split("\n").reduce((sum, line) => sum + 1 + Math.floor(line.length / 80), 0);
  $("box").rows = Math.min(8, lines);
}

// ---- events

function onKey(event) {
  if (event.key === "Escape" && !$("dialog").open) {
    if (running.size) action(stop)();
    else toggleSide(false);
  }
  const command = event.ctrlKey || event.metaKey;
  if (command && !event.shiftKey && event.key.toLowerCase() === "k") {
    event.preventDefault();
    toggleSide(true);
    $("search").focus();
  }
  if (command && event.shiftKey && event.key.toLowerCase() === "o") {
    event.preventDefault();
    action(startNew)();
  }
}

function onBoxKey(event) {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    action(submit)();
  }
  if (event.key === "ArrowUp" && !$("box").value) {
    const last = view?.messages.findLast((message) => message.role === "user");
    if (!last) return;
    event.preventDefault();
    edit(last);
  }
}

function connect() {
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    action(submit)();
  });
  $("box").addEventListener("keydown", onBoxKey);
  $("box").addEventListener("input", resizeBox);
  document.addEventListener("keydown", onKey);
  $("stop").addEventListener("click", action(stop));
  $("new").addEventListener("click", action(startNew));
  $("rename").addEventListener("click", action(rename));
  $("delete").addEventListener("click", action(remove));
  $("search").addEventListener("input", action(listConversations));
  $("menu").addEventListener("click", () => toggleSide(!$("side").classList.contains("shown")));
  $("list").addEventListener("click", () => toggleSide(false));
  $("settings-toggle").addEventListener("click", toggleSettings);
  $("prompt").addEventListener("change", choosePrompt);
  for (const id of ["model", "second"]) $(id).addEventListener("change", showBaseNotice);
  for (const example of document.querySelectorAll(".example")) {
    example.addEventListener("click", () => {
      $("box").value = example.textContent;
      resizeBox();
      $("box").focus();
    });
  }
  const onAddress = action(async () => {
    if (running.size) await stop();
    await open(location.hash.slice(1));
  });
  addEventListener("popstate", onAddress);
}

connect();
action(async () => {
  await loadModels();
  await Promise.all([listConversations(), open(location.hash.slice(1))]);
})();
$("box").focus();
