// Requests to the server this page came from. Paths are relative, so that a proxy's prefix stays.

import { authorization, demand } from "./access.js";

/** An answer that is no success; `code` is the word for programs. */
export class Refused extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** The path of a conversation. */
export function conversationPath(id, rest = "") {
  return `v1/conversations/${encodeURIComponent(id)}${rest}`;
}

/** The JSON of an answer; absent parameters are left out. */
export async function getJson(path, signal, params = {}) {
  return (await get(path, signal, params, "application/json")).json();
}

/** The same of conversations, as this node's replicas have them: one looks most when there is no quorum to be had. */
export function getLocal(path, signal, params = {}) {
  return getJson(path, signal, { ...params, consistency: "local" });
}

/** The text of an answer. */
export async function getText(path, signal) {
  return (await get(path, signal, {}, "text/plain")).text();
}

async function get(path, signal, params, accept) {
  const query = new URLSearchParams(Object.entries(params).filter(([, value]) => value !== null && value !== ""));
  const url = query.size > 0 ? `${path}?${query}` : path;
  let response;
  try {
    response = await fetch(url, { signal, headers: { accept, ...authorization() }, cache: "no-store" });
  } catch (error) {
    if (signal.aborted) throw error;
    throw new Refused(0, "unreachable", "The server does not answer.");
  }
  if (response.ok) return response;
  if (response.status === 401) demand();
  const said = await response.json().catch(() => ({}));
  throw new Refused(response.status, said.error ?? "", said.message ?? said.reason ?? `The server answers ${response.status}.`);
}

/** Calls `onFrame` with every frame of a conversation behind `cursor` (`null`: from now) until the stream ends. */
export async function follow(id, cursor, signal, onOpen, onFrame) {
  const response = await get(conversationPath(id, "/stream"), signal, { cursor }, "text/event-stream");
  if (response.status === 204) return;
  onOpen();
  let pending = "";
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (pending + value).split("\n\n");
    pending = events.pop();
    for (const event of events) {
      const data = event.split("\n").filter((line) => line.startsWith("data:"));
      if (data.length > 0) onFrame(JSON.parse(data.map((line) => line.slice(5)).join("\n")));
    }
  }
}
