// The conversations of the whole cluster, in the order of their ids.

import { conversationPath, getLocal } from "./client.js";
import { field, h, problem } from "./dom.js";
import { count, time } from "./format.js";

const PAGE = 50;
const COLUMNS = ["Conversation", "Events", "Version", "Budget", "Policy", "Status", "Changed"];

export function showBrowser(root, signal) {
  const prefix = h("input", { type: "search", name: "prefix", autocomplete: "off", spellcheck: "false", placeholder: "any" });
  const status = h("select", { name: "status" },
    [["", "any"], ["active", "active"], ["tombstoned", "tombstoned"]].map(([value, text]) => h("option", { value }, text)));
  const exact = h("input", { type: "text", name: "id", autocomplete: "off", spellcheck: "false", required: true });
  const rows = h("tbody");
  const more = h("button", { type: "button", hidden: true }, "More");
  const said = h("p", { class: "muted", role: "status" });
  const heads = COLUMNS.map((name) => h("th", { scope: "col" }, name));
  root.append(
    h("h1", {}, "Conversations"),
    h("div", { class: "row spread" },
      h("form", { class: "row", role: "search", "aria-label": "List", onsubmit: (event) => (event.preventDefault(), list()) },
        field("Id begins with", prefix), field("Status", status), h("button", { type: "submit", class: "primary" }, "List")),
      h("form", { class: "row", "aria-label": "Open", onsubmit: (event) => (event.preventDefault(), open(exact.value)) },
        field("Exact id", exact), h("button", { type: "submit" }, "Open"))),
    h("section", { class: "card" },
      h("div", { class: "scroll" }, h("table", { class: "stacking" }, h("thead", {}, h("tr", {}, heads)), rows)), said, more),
  );

  let cursor = null;
  let asked = 0;
  async function load() {
    const mine = ++asked;
    more.disabled = true;
    try {
      const params = { prefix: prefix.value, status: status.value, limit: PAGE, cursor };
      const page = await getLocal("v1/conversations", signal, params);
      if (mine !== asked) return;
      cursor = page.next_cursor;
      rows.append(...page.conversations.map(row));
      const shown = rows.children.length;
      said.textContent = shown === 0 && cursor === null ? "No conversation is like that." : `${count(shown)} shown${cursor === null ? ", that is all" : ""}`;
      more.hidden = cursor === null;
    } catch (error) {
      if (!signal.aborted) said.replaceChildren(problem(error));
    } finally {
      more.disabled = false;
    }
  }
  function list() {
    cursor = null;
    rows.replaceChildren();
    load();
  }
  more.addEventListener("click", load);
  status.addEventListener("change", list);
  list();
}

function open(id) {
  location.hash = `#/conversations/${encodeURIComponent(id)}`;
}

function row(conversation) {
  const cells = [
    h("a", { href: `#/conversations/${encodeURIComponent(conversation.id)}` }, conversation.id),
    count(conversation.last_seq), count(conversation.version), count(conversation.token_budget), conversation.policy.strategy,
    h("span", { class: "chip", "data-level": conversation.status === "active" ? "ok" : "warn" }, conversation.status),
    time(conversation.updated_at),
  ];
  return h("tr", {}, cells.map((cell, at) => h("td", { "data-name": COLUMNS[at] }, cell)));
}

/** The settings and state of one. */
export function describe(id, signal) {
  return getLocal(conversationPath(id), signal);
}
