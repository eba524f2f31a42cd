// The window, drawn: how the budget is filled, and what of the log is in it, summarised, or left out and why.

import { conversationPath, getLocal } from "./client.js";
import { field, h, problem } from "./dom.js";
import { count, plural, range } from "./format.js";
import { message, roleClass } from "./message.js";

const ROWS_MAX = 200;
const MESSAGES_MAX = 50;

const REASONS = {
  over_limit: "older than the newest messages that the policy keeps",
  over_max_tokens: "older than what fits into the policy's max_tokens",
  over_budget: "older than what fits into the budget",
  exceeds_budget: "larger than the budget, alone or with its tool calls and results",
  message_skipped: "all its parts are of skipped kinds",
  parts_skipped: "some of its parts are of skipped kinds, the rest is in",
  call_compacted: "a tool result whose call was compacted away",
  result_compacted: "a tool call whose result was compacted away",
};

export function windowView({ root, id, signal, load }) {
  const number = () => h("input", { type: "number", min: "0", step: "1", inputmode: "numeric", placeholder: "as it is" });
  const [budget, version] = [number(), number()];
  const drawn = h("div");
  root.append(
    h("form", { class: "row", onsubmit: (event) => (event.preventDefault(), draw()) },
      field("With a budget of", budget), field("As of version", version), h("button", { type: "submit", class: "primary" }, "Draw")),
    drawn);
  async function draw() {
    try {
      const params = { explain: "true", budget_tokens: budget.value, at_version: version.value };
      const [conversation, found] = await Promise.all([load(), getLocal(conversationPath(id, "/window"), signal, params)]);
      const inForce = budget.value === "" ? conversation.token_budget : Number(budget.value);
      drawn.replaceChildren(picture(found, inForce, conversation));
    } catch (error) {
      if (!signal.aborted) drawn.replaceChildren(problem(error));
    }
  }
  draw();
}

function picture(found, budget, conversation) {
  const rows = fates(found);
  return h("div", {},
    h("p", { class: "lead", role: "status" },
      h("strong", {}, `${count(found.used_tokens)} of ${count(budget)} tokens`), ` at version ${count(found.version)}. `,
      found.needs_compaction
        ? h("span", { class: "chip", "data-level": "warn" }, "compaction wanted")
        : h("span", { class: "chip", "data-level": "ok" }, "no compaction wanted")),
    budgetBar(found, budget, conversation), logBar(rows), tableOfFates(rows), messages(found.messages));
}

/** The budget as one bar: a slice a message, then what is free; a mark where compaction is wanted. */
function budgetBar(found, budget, conversation) {
  const bar = h("div", { class: "bar", role: "img", "aria-label": `${count(found.used_tokens)} of ${count(budget)} tokens used` });
  const slice = (kind, tokens, title) => {
    const element = h("span", { class: "slice", "data-role": kind, title });
    element.style.flexGrow = String(tokens);
    return element;
  };
  for (const each of found.messages) {
    const kind = each.to_seq === undefined ? roleClass(each.role) : "summary";
    const title = `#${range(each.seq, each.to_seq ?? each.seq)} ${each.role}: ${plural(each.token_count, "token")}`;
    bar.append(slice(kind, each.token_count, title));
  }
  bar.append(slice("free", Math.max(0, budget - found.used_tokens), `${count(budget - found.used_tokens)} tokens free`));
  const trigger = conversation.trigger_ratio * conversation.token_budget;
  const mark = h("span", { class: "mark", title: `compaction is wanted from ${count(Math.round(trigger))} tokens on` });
  mark.style.insetInlineStart = `${(100 * trigger) / budget}%`;
  const kinds = ["summary", "system", "user", "assistant", "tool", "other", "free"];
  const tokens = new Map(kinds.map((kind) => [kind, 0]));
  for (const each of found.messages) {
    const kind = each.to_seq === undefined ? roleClass(each.role) : "summary";
    tokens.set(kind, tokens.get(kind) + each.token_count);
  }
  tokens.set("free", budget - found.used_tokens);
  const legend = kinds.filter((kind) => tokens.get(kind) > 0).map((kind) => h("li", {},
    h("span", { class: "swatch", "data-role": kind }), ` ${kind} `, h("b", {}, count(tokens.get(kind)))));
  return h("figure", {}, h("figcaption", {}, "The budget, in tokens"),
    h("div", { class: "barbox" }, bar, trigger <= budget && mark),
    h("ul", { class: "keys" }, legend,
      trigger <= budget && h("li", {}, h("span", { class: "swatch line" }), ` compaction wanted from ${count(Math.round(trigger))}`)));
}

/** What became of every stretch of the log, in its order. */
function fates(found) {
  const tokensIn = (from, to, isSummary) => found.messages
    .filter((each) => (each.to_seq !== undefined) === isSummary && each.seq >= from && each.seq <= to)
    .reduce((sum, each) => sum + each.token_count, 0);
  const leftOut = found.left_out.map(({ from_seq, to_seq, reason }) => {
    const inPart = reason === "parts_skipped";
    const tokens = inPart ? tokensIn(from_seq, to_seq, false) : null;
    return { fate: inPart ? "in part" : "left out", from: from_seq, to: to_seq, tokens, why: REASONS[reason] ?? reason };
  }).sort((a, b) => a.from - b.from);
  const kept = found.segments.flatMap(({ type, from_seq, to_seq }) => {
    if (type === "summary") {
      const tokens = tokensIn(from_seq, to_seq, true);
      return [{ fate: "summarised", from: from_seq, to: to_seq, tokens, why: "replaced by a summary" }];
    }
    return between(from_seq, to_seq, leftOut).map(([from, to]) => ({ fate: "in", from, to, tokens: tokensIn(from, to, false), why: "" }));
  });
  return [...kept, ...leftOut].sort((a, b) => a.from - b.from || b.to - a.to);
}

/** What of a stretch lies between others, which are in order. */
function between(from, to, others) {
  const pieces = [];
  for (const other of others) {
    if (other.to < from || other.from > to) continue;
    if (other.from > from) pieces.push([from, other.from - 1]);
    from = other.to + 1;
  }
  return from <= to ? [...pieces, [from, to]] : pieces;
}

function logBar(rows) {
  const last = rows.reduce((most, row) => Math.max(most, row.to), 0);
  if (last === 0) return h("p", { class: "muted" }, "The log is empty.");
  const bar = h("div", { class: "bar log", role: "img", "aria-label": "What of the log is in the window; the table below says the same" });
  for (const row of rows.slice(0, ROWS_MAX)) {
    const piece = h("span", { class: "piece", "data-fate": row.fate, title: `${range(row.from, row.to)}: ${row.fate}` });
    piece.style.insetInlineStart = `${(100 * (row.from - 1)) / last}%`;
    piece.style.inlineSize = `${(100 * (row.to - row.from + 1)) / last}%`;
    bar.append(piece);
  }
  const present = [...new Set(rows.map((row) => row.fate))];
  return h("figure", {}, h("figcaption", {}, `The log, by seq: 1 to ${count(last)}`), h("div", { class: "barbox" }, bar),
    h("ul", { class: "keys" }, present.map((fate) => h("li", {}, h("span", { class: "swatch", "data-fate": fate }), ` ${fate}`))));
}

function tableOfFates(rows) {
  const columns = ["Seq", "In the window", "Tokens", "Why"];
  const cells = (row) => [
    range(row.from, row.to), h("span", { class: "fate", "data-fate": row.fate }, row.fate), row.tokens === null ? "" : count(row.tokens), row.why,
  ];
  const more = rows.length - ROWS_MAX;
  return h("div", { class: "scroll" },
    h("table", { class: "fates" }, h("thead", {}, h("tr", {}, columns.map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, rows.slice(0, ROWS_MAX).map((row) => h("tr", {}, cells(row).map((cell) => h("td", {}, cell)))))),
    more > 0 && h("p", { class: "muted" }, `and ${plural(more, "more stretch", "more stretches")}`));
}

function messages(all) {
  const list = h("div", { class: "messages" }, all.slice(-MESSAGES_MAX).map(message));
  const hidden = all.length - MESSAGES_MAX;
  const before = hidden > 0 && h("button", { type: "button", onclick: () => (list.replaceChildren(...all.map(message)), before.remove()) },
    `Show the ${plural(hidden, "message")} before`);
  return h("details", { open: all.length <= MESSAGES_MAX },
    h("summary", {}, `The ${plural(all.length, "message")} that the model gets`), before, list);
}
