// The cluster as the node that was asked sees it: a verdict first, then groups, nodes, and that node's own rates.

import { getJson, getText } from "./client.js";
import { h, problem, repeat, say } from "./dom.js";
import { count, plural, seconds, short } from "./format.js";
import { colour, groupMap } from "./map.js";
import { History, parse } from "./metrics.js";
import { rates } from "./rates.js";

/** Time between two looks. */
const LOOK_MS = 2_000;
const KEPT_MS = 60_000;
/** Entries behind from which on a replica is called behind. */
const LAG_NOTED = 1_000;

export function showCluster(root, signal) {
  const verdict = h("section", { class: "verdict", role: "status", "aria-label": "Verdict" });
  const map = groupMap();
  const nodes = h("tbody");
  const tiles = rates();
  const titleOfRates = h("h2", {}, "This node");
  const about = h("p", { class: "muted" });
  root.append(
    h("h1", {}, "Cluster"), verdict, about,
    h("section", { class: "card" }, h("h2", {}, "Who leads the groups"), map.element),
    h("section", { class: "card" }, h("h2", {}, "Nodes"), tableOfNodes(nodes)),
    h("section", { class: "card" }, titleOfRates,
      h("p", { class: "muted" }, "Rates and quantiles over the last 30 seconds; lines over the last minutes."), tiles.element),
  );
  const history = new History(KEPT_MS);
  let seen = null;

  repeat(LOOK_MS, signal, async () => {
    try {
      const [cluster, metrics, ready] = await Promise.all([
        getJson("v1/cluster", signal), getText("metrics", signal), readiness(signal),
      ]);
      seen = new Date();
      history.add(performance.now(), parse(metrics));
      map.draw(cluster);
      tiles.draw(history);
      nodes.replaceChildren(...cluster.nodes.map((node) => row(node, cluster)));
      say(titleOfRates, `This node: ${cluster.answered_by}`);
      say(about, `Cluster ${cluster.cluster_id ?? "none"}, state version ${count(cluster.version)}, seen ${seen.toLocaleTimeString("en-GB")}`);
      judgement(verdict, findings(cluster, history, ready), cluster);
    } catch (error) {
      if (signal.aborted) return;
      const since = seen ? ` Below is what it said at ${seen.toLocaleTimeString("en-GB")}.` : "";
      delete verdict.dataset.key;
      verdict.dataset.level = "bad";
      verdict.replaceChildren(problem(new Error(error.message + since)));
    }
  });
}

/** Why this node is not ready; nothing when it is. */
async function readiness(signal) {
  try {
    await getJson("health/ready", signal);
    return null;
  } catch (error) {
    return error.message;
  }
}

/** What an operator should know, the worst first. */
function findings(cluster, history, unready) {
  const found = [];
  const note = (level, text) => found.push({ level, text });
  if (cluster.groups_without_leader > 0) {
    note("bad", `${plural(cluster.groups_without_leader, "group")} of ${cluster.groups} without a leader within reach: their conversations take no appends.`);
  }
  const reached = cluster.nodes.filter((node) => node.link === "up").length;
  if (reached <= cluster.nodes.length / 2) {
    note("bad", `${reached} of ${plural(cluster.nodes.length, "node")} within reach: where that is no majority of a group, nothing is appended.`);
  }
  if (cluster.leaders_by_group[cluster.groups] === undefined) {
    note("bad", "The group of the cluster state has no leader: members cannot be changed.");
  }
  if (history.gauge("fastpaca_disk_full") > 0) note("bad", `The disk of ${cluster.answered_by} is full: it refuses appends.`);
  for (const node of cluster.nodes) {
    if (node.link === "down") {
      const since = node.link_seconds === null ? "" : ` for ${seconds(node.link_seconds)}`;
      note("bad", `${node.name} is out of reach${since}${node.link_error ? `: ${node.link_error}` : "."}`);
    }
    if (node.state !== "active") note("warn", `${node.name} is ${node.state}.`);
    if (node.lag >= LAG_NOTED) note("warn", `${node.name} has ${count(node.lag)} committed entries still to apply.`);
  }
  if (unready !== null) note("warn", `${cluster.answered_by} is not ready: ${unready}.`);
  if (cluster.moving > 0) note("warn", `${plural(cluster.moving, "group")} not yet where they shall be.`);
  const stopped = history.gauge("fastpaca_archive_stopped_conversations");
  if (stopped > 0) note("warn", `${plural(stopped, "conversation")} not archived: the archive holds something else for them.`);
  return found.sort((a, b) => (a.level === b.level ? 0 : a.level === "bad" ? -1 : 1));
}

function judgement(verdict, found, cluster) {
  const level = found[0]?.level ?? "ok";
  const words = { ok: "All is well", warn: "Something to look at", bad: "Something is wrong" };
  const nodes = plural(cluster.nodes.length, "node");
  const key = JSON.stringify([level, found, nodes]);
  // Read aloud only when it changes.
  if (verdict.dataset.key === key) return;
  verdict.dataset.key = key;
  verdict.dataset.level = level;
  verdict.replaceChildren(
    h("h2", {}, words[level]),
    found.length === 0
      ? h("p", {}, `${nodes} within reach, ${cluster.groups} of ${cluster.groups} groups have a leader, nothing is moving.`)
      : h("ul", {}, found.map((finding) => h("li", { "data-level": finding.level }, finding.text))),
  );
}

const COLUMNS = ["Node", "State", "Link", "Leads", "Hosts", "Lag", "Round trip", "Address", "Starts"];

function tableOfNodes(body) {
  const heads = COLUMNS.map((name) => h("th", { scope: "col" }, name));
  return h("div", { class: "scroll" }, h("table", { class: "stacking" }, h("thead", {}, h("tr", {}, heads)), body));
}

function row(node, cluster) {
  const here = node.name === cluster.answered_by;
  const names = cluster.nodes.map(({ name }) => name);
  const link = here ? "this node" : node.link === "up" ? `up ${seconds(node.link_seconds)}` : `down ${seconds(node.link_seconds)}`;
  const cells = [
    [h("span", { class: "cell", "data-colour": String(colour(names, node.name)) }), ` ${node.name}`],
    h("span", { class: "chip", "data-level": node.state === "active" ? "ok" : "warn" }, node.state),
    h("span", { class: "chip", "data-level": node.link === "up" ? "ok" : "bad", title: node.link_error }, link),
    count(node.leaders), count(node.groups), count(node.lag),
    node.rtt_us === null ? "–" : `${short(node.rtt_us / 1000)} ms`, node.address, count(node.incarnation),
  ];
  return h("tr", {}, cells.map((cell, at) => h("td", { "data-name": COLUMNS[at] }, cell)));
}
