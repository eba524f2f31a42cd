// The map of the groups: one cell a group, coloured by the node that leads it.

import { h, say } from "./dom.js";
import { plural } from "./format.js";

/** Colours there are; further nodes share them. */
const COLOURS = 8;

/** The map, and what draws it anew from the answer of /v1/cluster. */
export function groupMap() {
  const grid = h("div", { class: "map", role: "group", tabindex: "0", "aria-describedby": "map-said" });
  const said = h("output", { id: "map-said", class: "muted", "aria-live": "polite" });
  const legend = h("div", { class: "legend", role: "group", "aria-label": "Show the groups of one node" });
  const state = { cells: [], leaders: {}, chosen: null, at: 0 };

  const tell = (group) => {
    const leader = state.leaders[group];
    say(said, `Group ${group}: ${leader ? `led by ${leader}` : "no leader within reach"}`);
  };
  const move = (to) => {
    state.cells[state.at]?.classList.remove("at");
    state.at = Math.max(0, Math.min(state.cells.length - 1, to));
    state.cells[state.at]?.classList.add("at");
    tell(state.at);
  };
  grid.addEventListener("keydown", (event) => {
    const across = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across };
    if (!(event.key in steps)) return;
    event.preventDefault();
    move(state.at + steps[event.key]);
  });
  grid.addEventListener("pointermove", (event) => {
    const cell = state.cells.indexOf(event.target);
    if (cell >= 0) move(cell);
  });

  const dim = () => {
    state.cells.forEach((cell, group) => {
      cell.classList.toggle("dim", state.chosen !== null && (state.leaders[group] ?? "") !== state.chosen);
    });
    for (const button of legend.children) {
      button.setAttribute("aria-pressed", String(button.dataset.node === state.chosen));
    }
  };
  const choose = (name) => {
    state.chosen = state.chosen === name ? null : name;
    dim();
  };

  function draw(cluster) {
    state.leaders = cluster.leaders_by_group;
    const names = cluster.nodes.map((node) => node.name);
    if (state.cells.length !== cluster.groups) {
      state.cells = Array.from({ length: cluster.groups }, () => h("span", { class: "cell" }));
      grid.replaceChildren(...state.cells);
      say(said, "Move over the map, or use the arrow keys, to see a group.");
    }
    state.cells.forEach((cell, group) => {
      const leader = state.leaders[group];
      cell.dataset.colour = leader === undefined ? "none" : String(colour(names, leader));
    });
    const led = (name) => state.cells.filter((_, group) => (state.leaders[group] ?? "") === name).length;
    const entries = names.map((name) => ({ key: name, colour: String(colour(names, name)), text: name, led: led(name) }));
    if (led("") > 0) entries.push({ key: "", colour: "none", text: "no leader", led: led("") });
    const key = JSON.stringify(entries);
    if (legend.dataset.key !== key) {
      legend.dataset.key = key;
      legend.replaceChildren(...entries.map((entry) => h(
        "button",
        { type: "button", "data-node": entry.key, onclick: () => choose(entry.key) },
        h("span", { class: "cell", "data-colour": entry.colour }),
        ` ${entry.text} `,
        h("b", {}, String(entry.led)),
      )));
    }
    const spoken = entries.map((entry) => `${entry.text} ${plural(entry.led, "group")}`).join(", ");
    grid.setAttribute("aria-label", `Leaders of the groups: ${spoken}`);
    dim();
  }
  return { element: h("div", {}, legend, grid, h("p", { class: "said" }, said)), draw };
}

/** The number of a node's colour. */
export function colour(names, name) {
  return Math.max(0, names.indexOf(name)) % COLOURS;
}
