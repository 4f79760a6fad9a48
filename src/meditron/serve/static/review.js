// Sends ratings as JSON when they change. Everything shown comes from the server's escaped templates.
"use strict";

const statusLine = document.querySelector("#status");

function show(text, failed = false) {
  statusLine.textContent = text;
  statusLine.classList.toggle("failed", failed);
}

async function post(address, body) {
  const response = await fetch(address, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    credentials: "same-origin",
    keepalive: true,
  });
  let answer = {};
  try {
    answer = await response.json();
  } catch {
    // The status below says what failed.
  }
  if (!response.ok) {
    throw new Error(answer.error?.message ?? `status ${response.status}`);
  }
  return answer;
}

function changeOf(input) {
  let value = input.value === "" ? null : input.value;
  if (/^[1-5]$/.test(value) && input.type === "radio") value = Number(value);
  if (input.name.endsWith(".harmful")) value = value === "yes";
  const [side, field] = input.name.split(".");
  return field === undefined ? { [side]: value } : { [side]: { [field]: value } };
}

class Rating {
  constructor(form) {
    this.form = form;
    this.sending = Promise.resolve();
    this.failed = new Map(); // name → input of changes that the server does not have
    this.missing = null;
    this.warned = false;
    form.addEventListener("change", (event) => this.save(event.target));
    form.addEventListener("keydown", (event) => this.choose(event));
    window.addEventListener("beforeunload", (event) => {
      if (this.failed.size) event.preventDefault();
    });
  }

  // Changes are sent one after another, so that an older value never replaces a newer one.
  save(input) {
    this.showKinds();
    this.failed.set(input.name, input);
    this.sending = this.sending.then(() => this.send());
    return this.sending;
  }

  async send() {
    for (const [name, input] of [...this.failed]) {
      const sent = input.type === "radio" ? this.form.elements[name].value : input.value;
      show("Saving …");
      try {
        const chosen = input.type === "radio" ? this.form.querySelector(`[name="${name}"]:checked`) : input;
        this.record(await post(this.form.dataset.save, changeOf(chosen)));
      } catch (error) {
        show(`Not saved: ${error.message}. It is sent again with the next change.`, true);
        return;
      }
      const now = input.type === "radio" ? this.form.elements[name].value : input.value;
      if (now === sent) this.failed.delete(name);
    }
    show("Saved");
  }

  record(answer) {
    this.missing = answer.missing;
    document.querySelector("#complete").textContent = answer.complete;
    document.querySelector("#progress").value = answer.complete;
  }

  // A kind is asked for only if there is something that can have one.
  showKinds() {
    for (const line of this.form.querySelectorAll("[data-if]")) {
      const value = this.form.elements[line.dataset.if].value;
      line.hidden = !(value === "yes" || Number(value) > 1);
    }
  }

  // The digits 1 to 5 choose a point of the scale that has the focus.
  choose(event) {
    if (event.target.type !== "radio" || event.ctrlKey || event.altKey || event.metaKey) return;
    const point = [...this.form.elements[event.target.name]].find((input) => input.value === event.key);
    if (point && !point.checked) {
      event.preventDefault();
      point.focus();
      point.click();
    }
  }

  async next() {
    this.sending = this.sending.then(() => this.send());
    await this.sending;
    if (this.failed.size) return;
    if (this.missing === null) this.record(await post(this.form.dataset.save, {}));
    for (const field of this.form.querySelectorAll("[data-field]")) {
      field.classList.toggle("missing", this.missing.includes(field.dataset.field));
    }
    if (this.missing.length && !this.warned) {
      this.warned = true;
      show(`${this.missing.length} ratings are missing. Press the button again to go on without them.`, true);
      this.form.querySelector(".missing input").focus();
      return;
    }
    window.location.assign(this.form.dataset.next);
  }
}

const form = document.querySelector("#rating");
const rating = new Rating(form);
rating.showKinds();
form.addEventListener("submit", (event) => {
  event.preventDefault();
  rating.next().catch((error) => show(error.message, true));
});
