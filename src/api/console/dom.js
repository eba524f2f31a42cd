// Builds elements. Text becomes text nodes and nothing else: what is shown was written by strangers.

const SVG = "http://www.w3.org/2000/svg";

/** An element. Members of `props`: listeners (`onclick`), booleans, properties that have no attribute, attributes. */
export function h(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** The same for SVG. */
export function svg(tag, props = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked") element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Writes text only where it differs, so that what is read aloud is what changed. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A label above its field. */
export function field(label, input) {
  return h("label", { class: "field" }, h("span", {}, label), input);
}

/** What went wrong, for people. */
export function problem(error) {
  return h("p", { class: "problem", role: "alert" }, error.message);
}

/** Runs `work` now and then every `milliseconds`, while the page is looked at, until aborted. */
export async function repeat(milliseconds, signal, work) {
  while (!signal.aborted) {
    if (!document.hidden) await work();
    await pause(milliseconds, signal);
  }
}

/** Resolves after a time, or at once when aborted. */
export function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}
