// The live stream, by server-sent events read from a fetch, since an EventSource cannot carry a key.

import { follow } from "./client.js";
import { h, pause, say } from "./dom.js";
import { count, plural, range } from "./format.js";
import { message } from "./message.js";

/** Frames kept on the page. */
const SHOWN_MAX = 300;
const AGAIN_MS = 1_000;

export function live({ root, id, signal, load }) {
  const list = h("div", { class: "messages", role: "log", "aria-label": "Frames, newest first" });
  const said = h("p", { class: "muted", role: "status" });
  const from = h("select", {}, h("option", { value: "" }, "from now on"), h("option", { value: "0" }, "from the beginning"));
  const button = h("button", { type: "button", class: "primary" }, "Stop");
  root.append(
    h("div", { class: "row" }, h("label", { class: "field" }, h("span", {}, "Begin"), from), button), said, list);

  // The facts above follow what comes, at a pace people can read.
  let telling = null;
  const tell = () => {
    telling ??= setTimeout(() => ((telling = null), load().catch(() => {})), AGAIN_MS);
  };
  let running = new AbortController();
  signal.addEventListener("abort", () => running.abort());
  async function run() {
    running = new AbortController();
    const mine = running.signal;
    button.textContent = "Stop";
    list.replaceChildren();
    let cursor = from.value === "" ? null : Number(from.value);
    let ended = false;
    const onFrame = (frame) => {
      if (frame.type === "ping") return;
      cursor = frame.version;
      ended = frame.type === "tombstoned";
      say(said, `Connected, at version ${count(cursor)}`);
      list.prepend(shown(frame));
      tell();
      while (list.children.length > SHOWN_MAX) list.lastChild.remove();
    };
    while (!mine.aborted && !ended) {
      try {
        await follow(id, cursor, mine, () => say(said, "Connected, waiting for what comes"), onFrame);
        // It ended in an orderly way: the node shuts down, or the conversation is deleted and all was seen.
        if (!ended) say(said, "The stream ended, connecting again");
      } catch (error) {
        if (mine.aborted) break;
        say(said, `${error.message ?? "The connection broke."} Trying again.`);
        if (error.status >= 400 && error.status < 500) break;
      }
      await pause(AGAIN_MS, mine);
    }
    if (ended) say(said, "The conversation was deleted: this is the end of its stream.");
    if (!signal.aborted && running.signal === mine) stopped();
  }
  function stopped() {
    button.textContent = "Start";
    if (running.signal.aborted) say(said, "Stopped");
  }
  button.addEventListener("click", () => {
    if (button.textContent === "Start") run();
    else running.abort();
  });
  from.addEventListener("change", () => {
    running.abort();
    run();
  });
  run();
}

/** A frame as a message, or as one line. */
function shown(frame) {
  if (frame.type === "event") return message(frame.event);
  const text = {
    window: () => `window: ${plural(frame.used_tokens, "token")}${frame.needs_compaction ? ", compaction wanted" : ""}`,
    compaction: () => `compaction of ${range(frame.range.from_seq, frame.range.to_seq)}`,
    tombstoned: () => "deleted",
    reset: () => "reset: the cursor was of another life of this conversation",
    gap: () => `gap: versions ${count(frame.expected)} up to ${count(frame.actual)} cannot be delivered`,
  }[frame.type];
  return h("p", { class: "frame" }, h("b", {}, `v${count(frame.version)}`), ` ${text ? text() : frame.type}`);
}
