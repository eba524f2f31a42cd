// Reads the Prometheus text of /metrics, and makes rates and quantiles from samples taken one after the other.

/** Series (name and labels as written) to value. */
export function parse(text) {
  const series = new Map();
  for (const line of text.split("\n")) {
    const space = line.lastIndexOf(" ");
    if (line.startsWith("#") || space < 0) continue;
    series.set(line.slice(0, space), Number(line.slice(space + 1)));
  }
  return series;
}

/** The samples of the last minutes, oldest first. */
export class History {
  #samples = [];
  #keptMs;

  constructor(keptMs) {
    this.#keptMs = keptMs;
  }

  add(timeMs, series) {
    const last = this.#samples.at(-1);
    // Counters that went back: the process was started anew, and what was before says nothing any more.
    const started = "process_start_time_seconds";
    if (last && last.series.get(started) !== series.get(started)) this.#samples = [];
    this.#samples.push({ timeMs, series });
    while (this.#samples[0].timeMs < timeMs - this.#keptMs) this.#samples.shift();
  }

  get latest() {
    return this.#samples.at(-1)?.series;
  }

  /** The value of a gauge, `null` where there is none. */
  gauge(name) {
    return this.latest?.get(name) ?? null;
  }

  /** Per second over the last `spanMs`; `null` before there are two samples. */
  rate(name, spanMs) {
    const span = this.#span(spanMs);
    return span && (difference(span, name) * 1000) / (span.to.timeMs - span.from.timeMs);
  }

  /** What a histogram's observations of the last `spanMs` did not exceed in a share of cases; `null` without any. */
  quantile(name, share, spanMs) {
    const span = this.#span(spanMs);
    if (!span) return null;
    const prefix = `${name}_bucket{le="`;
    const buckets = [...span.to.series.keys()]
      .filter((key) => key.startsWith(prefix))
      .map((key) => ({ bound: bound(key.slice(prefix.length, -2)), count: difference(span, key) }))
      .sort((a, b) => a.bound - b.bound);
    const wanted = share * (buckets.at(-1)?.count ?? 0);
    if (wanted <= 0) return null;
    let below = { bound: 0, count: 0 };
    for (const bucket of buckets) {
      if (bucket.count >= wanted) {
        if (bucket.bound === Infinity) return below.bound;
        const part = (wanted - below.count) / (bucket.count - below.count);
        return below.bound + (bucket.bound - below.bound) * part;
      }
      below = bucket;
    }
    return null;
  }

  #span(spanMs) {
    const to = this.#samples.at(-1);
    const from = this.#samples.find((sample) => sample.timeMs >= to.timeMs - spanMs);
    return from && from !== to ? { from, to } : null;
  }
}

function bound(text) {
  return text === "+Inf" ? Infinity : Number(text);
}

function difference({ from, to }, name) {
  return (to.series.get(name) ?? 0) - (from.series.get(name) ?? 0);
}
