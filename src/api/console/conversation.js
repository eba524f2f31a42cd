// One conversation: its settings, and its log, window and stream under tabs.

import { describe } from "./browser.js";
import { h, problem } from "./dom.js";
import { count, time } from "./format.js";
import { live } from "./live.js";
import { log } from "./log.js";
import { windowView } from "./window.js";

const TABS = [["Log", log], ["Window", windowView], ["Live", live]];

export async function showConversation(root, signal, id) {
  root.append(h("p", { class: "back" }, h("a", { href: "#/conversations" }, "All conversations")), h("h1", { class: "id" }, id));
  const about = h("div");
  root.append(about);
  const load = async () => {
    const conversation = await describe(id, signal);
    about.replaceChildren(facts(conversation));
    return conversation;
  };
  try {
    await load();
    root.append(tabs((panel, leaving, show) => show({ root: panel, id, signal: leaving, load }), signal));
  } catch (error) {
    if (!signal.aborted) about.replaceChildren(problem(error));
  }
}

function facts(conversation) {
  const fact = (name, value) => h("div", {}, h("dt", {}, name), h("dd", {}, value));
  const json = (value) => h("pre", {}, JSON.stringify(value, null, 2));
  return h("div", { class: "card" },
    h("dl", { class: "facts" },
      fact("Status", h("span", { class: "chip", "data-level": conversation.status === "active" ? "ok" : "warn" }, conversation.status)),
      fact("Events", count(conversation.last_seq)),
      fact("Version", count(conversation.version)),
      fact("Token budget", count(conversation.token_budget)),
      fact("Compaction from", `${conversation.trigger_ratio * 100} %`),
      fact("Policy", conversation.policy.strategy),
      fact("Created", time(conversation.created_at)),
      fact("Changed", time(conversation.updated_at))),
    h("details", {}, h("summary", {}, "Policy and metadata"), h("h3", {}, "Policy"), json(conversation.policy),
      h("h3", {}, "Metadata"), json(conversation.metadata)));
}

/** Tabs by the pattern of the ARIA practices: arrows move, one panel at a time, which starts when shown and ends when left. */
function tabs(start, signal) {
  const panel = h("div", { role: "tabpanel", id: "panel", class: "panel" });
  let leaving = new AbortController();
  signal.addEventListener("abort", () => leaving.abort());
  const buttons = TABS.map(([name, show], at) => h("button", {
    type: "button", role: "tab", id: `tab-${at}`, "aria-controls": "panel",
    onclick: () => choose(at, show),
    onkeydown: (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step) buttons[(at + step + TABS.length) % TABS.length].click();
    },
  }, name));
  function choose(at, show) {
    leaving.abort();
    leaving = new AbortController();
    buttons.forEach((button, other) => {
      button.setAttribute("aria-selected", String(other === at));
      button.tabIndex = other === at ? 0 : -1;
    });
    if (buttons.includes(document.activeElement)) buttons[at].focus();
    panel.setAttribute("aria-labelledby", `tab-${at}`);
    const root = h("div");
    panel.replaceChildren(root);
    start(root, leaving.signal, show);
  }
  choose(0, TABS[0][1]);
  return h("section", { "aria-label": "Contents" }, h("div", { role: "tablist", class: "tabs", "aria-label": "Contents" }, buttons), panel);
}
