// A client of Fastpaca in one file, without dependencies, for Node 20 or later and anything else that has `fetch`.
//
//     const client = new Fastpaca("http://localhost:4000", "KEY");
//     await client.put("chat-1", { token_budget: 8000 });
//     await client.append("chat-1", { role: "user", content: "hello" });
//     (await client.window("chat-1")).messages;          // what to send to the model
//     await client.compact("chat-1", summarise);         // when the window says so
//     for await (const frame of client.follow("chat-1", 0)) { ... }  // replay, then live; reconnects by itself

export interface Part { type: string; [more: string]: unknown }
export interface NewEvent {
  role: string;
  parts?: Part[];
  content?: string;
  metadata?: Record<string, unknown>;
  token_count?: number;
}
export interface LogEvent {
  seq: number;
  role: string;
  parts: Part[];
  metadata: Record<string, unknown>;
  token_count: number;
  inserted_at: string;
}
/** A message of a window; one of a summary has the last seq it covers. */
export interface WindowMessage extends LogEvent { to_seq?: number }
export interface Window { version: number; messages: WindowMessage[]; used_tokens: number; needs_compaction: boolean }
export interface Conversation { id: string; token_budget: number; version: number; last_seq: number; status: string }
export interface Appended { seq: number; version: number; token_estimate: number; deduped?: boolean }
export type Frame =
  | { type: "event"; version: number; seq: number; event: LogEvent }
  | { type: "window"; version: number; used_tokens: number; needs_compaction: boolean }
  | { type: "compaction"; version: number; range: { from_seq: number; to_seq: number } }
  | { type: "gap"; version: number; expected: number; actual: number }
  | { type: "reset" | "tombstoned" | "ping"; version: number };
interface Page { events: LogEvent[]; next_cursor: number | null; has_more: boolean }

const ATTEMPTS_MAX = 6;
const ANSWER_MAX_MS = 35_000;
/** A stream pings every 30 s: what is silent for longer is dead. */
const SILENCE_MAX_MS = 75_000;

/** An answer that is no success; `code` is for programs. */
export class Refused extends Error {
  constructor(readonly status: number, readonly code: string, message: string, readonly retryAfterMs: number) {
    super(`${status} ${code}: ${message}`);
  }

  /** Whether the same request may succeed later: 503 and 429, and nothing else. */
  get mayPass(): boolean {
    return this.status === 429 || this.status === 503;
  }
}

export class Fastpaca {
  constructor(private readonly url: string, private readonly key?: string) {}

  put(conversation: string, settings: object): Promise<Conversation> {
    return this.json("PUT", path(conversation), settings);
  }

  /**
   * Appends one event, once, however often it takes to be sure.
   *
   * Without an answer, or with `unknown_outcome`, the event may be in the log or not. The same key makes asking again
   * safe; keep it with your own job if that can be started anew after a crash.
   */
  append(conversation: string, event: NewEvent, idempotencyKey: string = crypto.randomUUID()): Promise<Appended> {
    return this.json("POST", path(conversation, "/events"), { event, idempotency_key: idempotencyKey });
  }

  /** The log from one seq to another, page by page. */
  async *events(conversation: string, fromSeq: number, toSeq: number): AsyncGenerator<LogEvent> {
    let cursor = fromSeq - 1;
    for (;;) {
      const page: Page = await this.json("GET", path(conversation, `/events?cursor=${cursor}&to_seq=${toSeq}`));
      for (const event of page.events) yield event;
      if (!page.has_more || page.next_cursor === null) return;
      cursor = page.next_cursor;
    }
  }

  window(conversation: string, query: Record<string, string> = {}): Promise<Window> {
    return this.json("GET", path(conversation, `/window?${new URLSearchParams(query)}`));
  }

  /**
   * Replaces all but the newest `keep` events by a summary, if the window asks for that.
   *
   * `summarise` gets the summaries there are and the events behind them, and gives the new text. Those come from the
   * log, so that what the budget has pushed out of the window is not forgotten. Events that arrive meanwhile lie behind
   * the range and stay.
   */
  async compact(conversation: string, summarise: (events: LogEvent[]) => Promise<string>, keep = 20): Promise<void> {
    for (;;) {
      const window = await this.window(conversation);
      if (!window.needs_compaction) return;
      const events: LogEvent[] = window.messages.filter((message) => message.to_seq !== undefined);
      const covered = Math.max(0, ...window.messages.map((message) => message.to_seq ?? 0));
      const { last_seq: last }: Conversation = await this.json("GET", path(conversation));
      const upto = last - keep;
      if (upto <= covered) return;
      for await (const event of this.events(conversation, covered + 1, upto)) events.push(event);
      const replacement = [{ role: "system", content: await summarise(events) }];
      try {
        await this.json("POST", path(conversation, "/compact"), { from_seq: 1, to_seq: upto, replacement });
      } catch (error) {
        // Somebody else has compacted further meanwhile: look again.
        if (!(error instanceof Refused && error.code === "invalid_range")) throw error;
      }
    }
  }

  /**
   * Frames behind `cursor` (the last version processed; none: from now), for as long as the conversation lives.
   *
   * Every frame carries the `version` to resume from. After `gap` and `reset` the log has the truth.
   */
  async *follow(conversation: string, cursor?: number): AsyncGenerator<Frame> {
    for (let failures = 1; ; failures++) {
      try {
        for await (const frame of this.frames(conversation, cursor)) {
          failures = 0;
          if (frame.type === "ping") continue;
          cursor = frame.version;
          yield frame;
          if (frame.type === "tombstoned") return;
        }
      } catch (error) {
        // A broken link loses nothing: the cursor says where to go on.
        if (error instanceof Refused && !error.mayPass) throw error;
      }
      await pause(failures);
    }
  }

  private async *frames(conversation: string, cursor?: number): AsyncGenerator<Frame> {
    const silence = new AbortController();
    let timer = setTimeout(() => silence.abort(), SILENCE_MAX_MS);
    try {
      const query = cursor === undefined ? "" : `?cursor=${cursor}`;
      const headers = { accept: "text/event-stream" };
      const answer = await this.open("GET", path(conversation, `/stream${query}`), headers, silence.signal);
      if (answer.body === null) return;
      const decoder = new TextDecoder();
      const reader = answer.body.getReader();
      let pending = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        clearTimeout(timer);
        timer = setTimeout(() => silence.abort(), SILENCE_MAX_MS);
        const lines = (pending + decoder.decode(value, { stream: true })).split("\n");
        pending = lines.pop() ?? "";
        for (const line of lines) if (line.startsWith("data:")) yield JSON.parse(line.slice(5));
      }
    } finally {
      clearTimeout(timer);
      silence.abort();
    }
  }

  /** The answer, after as many attempts as make sense. Everything sent here may be sent twice. */
  private async json<T>(method: string, path: string, body?: object): Promise<T> {
    for (let attempt = 1; ; attempt++) {
      const limit = new AbortController();
      const timer = setTimeout(() => limit.abort(), ANSWER_MAX_MS);
      try {
        const headers = { "content-type": "application/json" };
        const answer = await this.open(method, path, headers, limit.signal, JSON.stringify(body));
        return (await answer.json()) as T;
      } catch (error) {
        const mayPass = !(error instanceof Refused) || error.mayPass;
        if (attempt === ATTEMPTS_MAX || !mayPass) throw error;
        await pause(attempt, error instanceof Refused ? error.retryAfterMs : 0);
      } finally {
        clearTimeout(timer);
      }
    }
  }

  private async open(method: string, path: string, headers: Record<string, string>, signal: AbortSignal, body?: string): Promise<Response> {
    if (this.key !== undefined) headers.authorization = `Bearer ${this.key}`;
    const answer = await fetch(this.url + path, { method, headers, body, signal });
    if (answer.ok) return answer;
    const said = (await answer.json()) as { error: string; message: string };
    throw new Refused(answer.status, said.error, said.message, 1000 * Number(answer.headers.get("retry-after") ?? 0));
  }
}

function path(conversation: string, rest = ""): string {
  return `/v1/conversations/${encodeURIComponent(conversation)}${rest}`;
}

/** Twice as long each time, to 5 s, scattered so that clients do not come at once. */
function pause(attempt: number, leastMs = 0): Promise<void> {
  const ms = Math.min(5_000, 100 * 2 ** attempt) * (0.5 + Math.random() / 2);
  return new Promise((resolve) => setTimeout(resolve, Math.max(leastMs, ms)));
}
