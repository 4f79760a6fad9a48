// What is written under an answer: how it ended, where it comes from, its tokens and speed.

import { element } from "./chat_page.js";

export function noteNode(message, isRunning) {
  const { error, hint } = message.answer;
  const notes = {
    stopped: "Stopped.",
    interrupted: "Interrupted: the server ended before the answer was complete.",
    failed: `Failed: ${error}${hint ? ` (${hint})` : ""}`,
    pending: isRunning ? "" : "The answer is being generated in another window.",
    done: message.answer.finish === "length" ? "The answer reached the maximum number of tokens. Settings can raise it." : error,
  };
  const left = message.answer.left_out;
  const full = left ? `The context is full: the oldest ${left > 1 ? `${left} questions were` : "question was"} left out.` : "";
  const text = [notes[message.state], full].filter(Boolean).join(" ");
  return text ? element("p", { className: "note" }, text) : null;
}

export function provenanceNode(message) {
  const { answer } = message;
  const { quantization, sha256, base_model, knowledge_cutoff, has_chat_template } = answer.provenance;
  const prompt = answer.prompt;
  const facts = [
    answer.model,
    base_model && `base model ${base_model}`,
    quantization,
    sha256 && `SHA-256 ${sha256.slice(0, 12)}…`,
    `knowledge cut-off ${knowledge_cutoff ? `${knowledge_cutoff} (training corpus)` : "unknown"}`,
    prompt ? `prompt ${prompt.name} ${prompt.label ?? ""} ${prompt.version.slice(0, 12)}` : "no stored prompt",
    has_chat_template === false && "one-shot medical prompt",
    "no sources retrieved",
  ].filter(Boolean);
  return element(
    "footer",
    {},
    element("p", { className: "provenance", title: sha256 ? `SHA-256 ${sha256}` : "" }, facts.join(" · ")),
    element("p", { className: "gauge" }, gaugeText(answer)),
  );
}

function gaugeText({ output_tokens, input_tokens, seconds, first_token_seconds, provenance }) {
  if (output_tokens === null || seconds === null) return "";
  const decoding = seconds - (first_token_seconds ?? 0);
  const facts = [`${output_tokens} tokens`];
  if (output_tokens > 1 && decoding > 0) facts.push(`${((output_tokens - 1) / decoding).toFixed(1)} tokens/s`);
  if (first_token_seconds !== null) facts.push(`first token after ${first_token_seconds.toFixed(1)} s`);
  const used = (input_tokens ?? 0) + output_tokens;
  if (provenance.context) facts.push(`${used} of ${provenance.context} tokens of context`);
  return facts.join(" · ");
}
