// Parts of a page that talks to the server: requests, elements, failures, a dialog. Text is inserted as text.

const ANNOUNCE_MS = 3000; // time between two announcements

export const $ = (id) => document.getElementById(id);

export class ServerError extends Error {}

// ---- requests

export function request(path, method = "GET", body = undefined) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  return fetch(`/chat/${path}`, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
}

export async function checked(response) {
  if (response.ok) return response;
  // The browser's session has ended.
  if (response.status === 401) location.assign("/login?next=/");
  const error = (await response.json().catch(() => ({}))).error ?? {};
  throw new ServerError(error.message ?? `the server answered with status ${response.status}`);
}

export async function json(path, method, body) {
  const response = await checked(await request(path, method, body));
  return response.status === 204 ? null : response.json();
}

export async function* readEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const [first, second] = block.split("\n");
      if (first.startsWith("event: ")) yield [first.slice(7), JSON.parse(second.slice(6))];
    }
  }
}

// Runs what a control does; a failure is shown, and the page stays usable.
export function action(work) {
  return async (...values) => {
    showAlert("");
    try {
      await work(...values);
    } catch (error) {
      showAlert(error instanceof ServerError ? error.message : `The server cannot be reached: ${error.message}`);
    }
  };
}

function showAlert(text) {
  $("alert").textContent = text;
  $("alert").hidden = !text;
}

// What a screen reader says next.
export function announce(text) {
  $("status").textContent = text.trim();
}

// Says the sentences of an answer that have come since the last time. Single tokens would flood the listener.
export function announceSentences(progress) {
  const now = performance.now();
  if (now - (progress.announcedAt ?? progress.first) < ANNOUNCE_MS) return;
  const from = progress.announced ?? 0;
  const end = Math.max(...[". ", "! ", "? ", "\n"].map((mark) => progress.text.lastIndexOf(mark))) + 1;
  if (end <= from) return;
  announce(progress.text.slice(from, end));
  progress.announced = end;
  progress.announcedAt = now;
}

// ---- building elements

export function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

export const button = (text, onclick, properties = {}) =>
  element("button", { type: "button", className: "quiet", onclick, ...properties }, text);

export function ask(title, body, yes, no = "Cancel") {
  const dialog = $("dialog");
  $("dialog-title").textContent = title;
  $("dialog-body").replaceChildren(...body);
  $("dialog-yes").textContent = yes;
  $("dialog-no").textContent = no;
  dialog.returnValue = "no"; // Esc closes the dialog without a value of its own
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}
