// Forms that send their fields as JSON: the address is in data-send. A reply may name the page to go to.

for (const form of document.querySelectorAll("form[data-send]")) {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(form, event.submitter);
  });
}

async function send(form, submitter) {
  const output = form.querySelector("output");
  const buttons = [...form.querySelectorAll("button")];
  output.textContent = "…";
  for (const button of buttons) button.disabled = true;
  try {
    const reply = await fetch(form.dataset.send, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(fields(form, submitter)),
    });
    const answer = await reply.json();
    if (!reply.ok) throw new Error(answer.error?.message ?? reply.statusText);
    const next = answer.next ?? location.href;
    if (next === location.pathname + location.search || next === location.href) location.reload();
    else location.assign(next);
  } catch (error) {
    output.textContent = error.message;
    for (const button of buttons) button.disabled = false;
  }
}

function fields(form, submitter) {
  const values = {};
  for (const field of form.elements) {
    if (!field.name || field.tagName === "BUTTON" || field.tagName === "OUTPUT") continue;
    values[field.name] = "pairs" in field.dataset ? pairs(field.value) : field.value;
  }
  if (submitter?.name) values[submitter.name] = "number" in submitter.dataset ? Number(submitter.value) : submitter.value;
  const messages = [...form.querySelectorAll("textarea[data-role]")];
  if (messages.length) values.messages = messages.map(({ dataset, value }) => ({ role: dataset.role, content: value }));
  return values;
}

function pairs(text) {
  const lines = text.split("\n").filter((line) => line.trim());
  return Object.fromEntries(lines.map((line) => [line.split("=", 1)[0].trim(), line.slice(line.indexOf("=") + 1)]));
}
