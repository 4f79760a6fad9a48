"use strict";
// The server accepts JSON only, because a form of another site cannot send it.

async function send(address, body) {
  const response = await fetch(address, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  const answer = await response.json();
  if (response.ok) {
    location.assign(answer.next);
  } else {
    document.getElementById("problem").textContent = answer.error.message;
  }
}

document.getElementById("log-in")?.addEventListener("submit", (event) => {
  event.preventDefault();
  const form = event.currentTarget;
  send("/login", { key: form.elements.key.value, next: form.dataset.next });
});
document.getElementById("log-out")?.addEventListener("click", () => send("/logout", {}));
