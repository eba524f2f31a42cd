// Which view is shown: the fragment of the URL decides, since the server never sees it.
//
// Reading order: this, a view (`cluster`, `browser`, `conversation`), `client` for requests, `dom` for elements.

import * as access from "./access.js";
import { showBrowser } from "./browser.js";
import { showCluster } from "./cluster.js";
import { showConversation } from "./conversation.js";
import { h } from "./dom.js";
import * as theme from "./theme.js";

const main = document.getElementById("main");
let leaving = new AbortController();

function show(event) {
  // What the view before still waits for is of no use.
  leaving.abort();
  leaving = new AbortController();
  const [view, id] = route();
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const root = h("div", { class: "view" });
  main.replaceChildren(root);
  document.title = `${id ?? (view === "cluster" ? "Cluster" : "Conversations")} · Fastpaca`;
  if (view === "cluster") showCluster(root, leaving.signal);
  else if (id === undefined) showBrowser(root, leaving.signal);
  else showConversation(root, leaving.signal, id);
  // A follower of a link goes on reading from where it leads.
  if (event?.type === "hashchange") main.focus({ preventScroll: true });
}

/** The name of the view, and the id of a conversation. */
function route() {
  const [, view, id] = location.hash.split("/");
  if (view !== "conversations") return ["cluster"];
  try {
    return id ? [view, decodeURIComponent(id)] : [view];
  } catch {
    return [view];
  }
}

theme.start();
access.start();
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
addEventListener("hashchange", show);
addEventListener("keychange", show);
show();
