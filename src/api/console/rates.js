// What the node that was asked is doing: figures with a line of their last minutes.

import { h, say, svg } from "./dom.js";
import { bytes, plural, seconds, short } from "./format.js";

/** Rates are over this time, and so are quantiles. */
const SPAN_MS = 30_000;
/** Points of a line; one comes with every sample. */
const POINTS_MAX = 90;

const rate = (name) => (history) => history.rate(name, SPAN_MS);
const quantile = (name, share, factor = 1) => (history) => {
  const found = history.quantile(name, share, SPAN_MS);
  return found === null ? null : found * factor;
};
const gauge = (name) => (history) => history.gauge(name);
const latency = (name, factor) => (history) => {
  const [p50, p99] = [0.5, 0.99].map((share) => quantile(name, share, factor)(history));
  return p50 === null ? "none in 30 s" : `p50 ${short(p50)} ms, p99 ${short(p99)} ms`;
};
const per = (limit) => (history) => `of ${short(history.gauge(limit))} allowed`;

/** Name, unit, the figure, how it is written, and a line of more about it. */
const FIGURES = [
  ["Appended", "events/s", rate("fastpaca_appended_events_total"), short,
    (history) => `${bytes(history.rate("fastpaca_appended_bytes_total", SPAN_MS))}/s of messages`],
  ["Append p95", "ms", quantile("fastpaca_append_latency_ms", 0.95), short, latency("fastpaca_append_latency_ms", 1)],
  ["Window p95", "ms", quantile("fastpaca_window_latency_ms", 0.95), short, latency("fastpaca_window_latency_ms", 1)],
  ["Disk sync p95", "ms", quantile("fastpaca_journal_fsync_seconds", 0.95, 1000), short,
    latency("fastpaca_journal_fsync_seconds", 1000)],
  ["Server errors", "/s", rate('fastpaca_http_requests_total{status="5xx"}'), short,
    (history) => `${short(history.rate('fastpaca_http_requests_total{status="4xx"}', SPAN_MS))}/s refused as the client's`],
  ["Windows", "/s", rate("fastpaca_window_latency_ms_count"), short,
    (history) => `${short(history.rate("fastpaca_compaction_requests_total", SPAN_MS))}/s compactions`],
  ["Forwarded", "/s", rate("fastpaca_forwarded_requests_total"), short,
    (history) => `${short(history.rate("fastpaca_forward_failures_total", SPAN_MS))}/s came back without an answer`],
  ["Requests at work", "", gauge("fastpaca_http_requests_inflight"), short,
    (history) => plural(history.gauge("fastpaca_proposals_inflight") ?? 0, "proposal") + " under way"],
  ["Streams", "", gauge("fastpaca_streams"), short, per("fastpaca_stream_limit")],
  ["Connections", "", gauge("fastpaca_connections"), short, per("fastpaca_connection_limit")],
  ["Memory", "", gauge("process_resident_memory_bytes"), bytes,
    (history) => `${short((history.rate("process_cpu_seconds_total", SPAN_MS) ?? NaN) * 100)} % of one core`],
  ["Disk free", "", gauge("fastpaca_disk_free_bytes"), bytes,
    (history) => `${plural(history.gauge("fastpaca_journal_segments") ?? 0, "journal segment")}`],
  ["Archive behind", "", gauge("fastpaca_raft_pending_flush_messages"), short,
    (history) => `for ${seconds(history.gauge("fastpaca_archive_lag_seconds"))}`],
];

/** The tiles, and what draws them anew from the history. */
export function rates() {
  const tiles = FIGURES.map(tile);
  const element = h("ul", { class: "tiles" }, tiles.map(({ element }) => element));
  return { element, draw: (history) => tiles.forEach(({ draw }) => draw(history)) };
}

function tile([name, unit, figure, write, more]) {
  const value = h("strong", {}, "–");
  const note = h("span", { class: "muted" }, " ");
  const line = svg("polyline", { class: "line", "vector-effect": "non-scaling-stroke" });
  const chart = svg("svg", { viewBox: `0 0 ${POINTS_MAX} 24`, preserveAspectRatio: "none", "aria-hidden": "true" }, line);
  const element = h("li", {}, h("span", { class: "name" }, name), h("span", { class: "value" }, value, " ", h("small", {}, unit)), chart, note);
  const points = [];
  return {
    element,
    draw(history) {
      const now = figure(history);
      say(value, now === null ? "–" : write(now));
      say(note, more(history));
      points.push(now ?? 0);
      if (points.length > POINTS_MAX) points.shift();
      const top = Math.max(...points, 1e-9);
      const from = POINTS_MAX - points.length;
      line.setAttribute("points", points.map((point, at) => `${from + at},${(22.5 - (point / top) * 21).toFixed(1)}`).join(" "));
    },
  };
}
