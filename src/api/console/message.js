// A message as it lies in the log or in a window.

import { h } from "./dom.js";
import { count, range, time } from "./format.js";

/** Longer texts are cut until asked for. */
const SHOWN_MAX = 4_000;
const ROLES = ["system", "user", "assistant", "tool"];

/** The role as a word for styles; anything a client may send is one of these or `other`. */
export function roleClass(role) {
  return ROLES.includes(role) ? role : "other";
}

export function message(event) {
  const isSummary = event.to_seq !== undefined;
  const seq = range(event.seq, event.to_seq ?? event.seq);
  const hasMetadata = Object.keys(event.metadata).length > 0;
  return h("article", { class: "message", "data-role": isSummary ? "summary" : roleClass(event.role) },
    h("header", {},
      h("b", {}, `#${seq}`), h("span", { class: "role" }, isSummary ? `summary (${event.role})` : event.role),
      h("span", { class: "muted" }, `${count(event.token_count)} tokens`),
      h("time", { class: "muted", datetime: event.inserted_at }, time(event.inserted_at))),
    event.parts.map(part),
    event.parts.length === 0 && h("p", { class: "muted" }, "no parts"),
    hasMetadata && h("details", {}, h("summary", {}, "Metadata"), cut(JSON.stringify(event.metadata, null, 2), "pre")));
}

function part(part) {
  if (part.type === "text" && typeof part.text === "string") return cut(part.text, "p");
  const { type, ...rest } = part;
  return h("div", { class: "part" }, h("span", { class: "chip" }, type), cut(JSON.stringify(rest, null, 2), "pre"));
}

/** A text, as far as it is not too long at once. */
function cut(text, tag) {
  if (text.length <= SHOWN_MAX) return h(tag, { class: "text" }, text);
  const shown = h(tag, { class: "text" }, text.slice(0, SHOWN_MAX));
  const all = h("button", { type: "button", onclick: () => (shown.replaceChildren(text), all.remove()) },
    `Show all ${count(text.length)} characters`);
  return h("div", {}, shown, all);
}
