// Light, dark, or what the system prefers.

const STORED = "fastpaca-theme";
const THEMES = ["auto", "light", "dark"];

/** Wires the button. */
export function start() {
  const button = document.getElementById("theme-button");
  const show = (theme) => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
  };
  let theme = localStorage.getItem(STORED);
  if (!THEMES.includes(theme)) theme = "auto";
  show(theme);
  button.addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    localStorage.setItem(STORED, theme);
    show(theme);
  });
}
