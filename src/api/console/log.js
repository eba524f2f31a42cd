// The log, from its end backwards or from any seq in both directions.

import { conversationPath, getLocal } from "./client.js";
import { field, h, problem } from "./dom.js";
import { range } from "./format.js";
import { message } from "./message.js";

const PAGE = 50;
/** Messages kept on the page; those at the other end go when more come. */
const SHOWN_MAX = 400;

export function log({ root, id, signal, load }) {
  const list = h("div", { class: "messages" });
  const said = h("p", { class: "muted", role: "status" });
  const older = h("button", { type: "button" }, "Older");
  const newer = h("button", { type: "button" }, "Newer");
  const seq = h("input", { type: "number", min: "1", step: "1", required: true, inputmode: "numeric" });
  root.append(
    h("div", { class: "row spread" },
      h("form", { class: "row", onsubmit: (event) => (event.preventDefault(), jump(Number(seq.value))) },
        field("From seq", seq), h("button", { type: "submit" }, "Go")),
      h("button", { type: "button", onclick: () => newest() }, "Newest")),
    said, older, list, newer);

  /** In order, without a hole. */
  let shown = [];
  const pageOf = (params) => getLocal(conversationPath(id, "/events"), signal, { limit: PAGE, ...params });
  const attempt = async (work) => {
    older.disabled = newer.disabled = true;
    try {
      await work();
      list.replaceChildren(...shown.map(message));
      const [first, last] = [shown.at(0), shown.at(-1)];
      said.textContent = first ? `Showing ${range(first.seq, last.seq)}` : "The log is empty here.";
      older.disabled = !first || first.seq <= 1;
      newer.disabled = !first;
    } catch (error) {
      if (!signal.aborted) said.replaceChildren(problem(error));
      older.disabled = newer.disabled = false;
    }
  };
  const newest = () => attempt(async () => {
    shown = (await pageOf({ order: "desc" })).events.reverse();
    await load();
  });
  const jump = (from) => attempt(async () => {
    shown = (await pageOf({ from_seq: from })).events;
  });
  older.addEventListener("click", () => attempt(async () => {
    const { events } = await pageOf({ order: "desc", cursor: shown[0].seq });
    shown = [...events.reverse(), ...shown].slice(0, SHOWN_MAX);
  }));
  newer.addEventListener("click", () => attempt(async () => {
    const { events } = await pageOf({ cursor: shown.at(-1).seq });
    shown = [...shown, ...events].slice(-SHOWN_MAX);
  }));
  newest();
}
