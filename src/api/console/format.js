// Numbers and times for people.

/** 12,345 */
export function count(value) {
  return value === null || value === undefined ? "–" : Number(value).toLocaleString("en");
}

/** A figure in at most four characters and a suffix: 0.42, 7.3, 128, 4.5k, 1.2M. */
export function short(value) {
  if (value === null || !Number.isFinite(value)) return "–";
  if (Number.isInteger(value) && value < 1e4) return String(value);
  const [divided, suffix] = value >= 1e6 ? [value / 1e6, "M"] : value >= 1e4 ? [value / 1e3, "k"] : [value, ""];
  const digits = divided === 0 || divided >= 100 ? 0 : divided >= 1 ? 1 : 2;
  return divided.toFixed(digits) + suffix;
}

/** Bytes with a binary unit. */
export function bytes(value) {
  if (value === null || !Number.isFinite(value)) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const step = Math.min(units.length - 1, value > 0 ? Math.floor(Math.log2(value) / 10) : 0);
  const divided = value / 1024 ** step;
  return `${divided.toFixed(step === 0 || divided >= 100 ? 0 : 1)} ${units[step]}`;
}

/** 45 s, 12 min, 3 h, 5 d */
export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 120) return `${Math.round(value)} s`;
  if (value < 7200) return `${Math.round(value / 60)} min`;
  if (value < 172800) return `${Math.round(value / 3600)} h`;
  return `${Math.round(value / 86400)} d`;
}

/** Local time of an RFC 3339 stamp: the time alone when it is of today. */
export function time(stamp) {
  const date = new Date(stamp);
  if (Number.isNaN(date.getTime())) return String(stamp);
  const clock = date.toLocaleTimeString("en-GB");
  return date.toDateString() === new Date().toDateString() ? clock : `${date.toLocaleDateString("en-CA")} ${clock}`;
}

/** seq 7, or seq 7 to 12 */
export function range(from, to) {
  return from === to ? `${count(from)}` : `${count(from)}–${count(to)}`;
}

/** One of something, or several. */
export function plural(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}
