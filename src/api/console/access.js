// The API key: in memory, or in this tab's session storage when asked to; never in a URL, a cookie or local storage.

const STORED = "fastpaca-key";
const dialog = document.getElementById("key-dialog");
const reason = document.getElementById("key-reason");
const input = document.getElementById("key-input");
const keep = document.getElementById("key-keep");
const button = document.getElementById("key-button");

let key = sessionStorage.getItem(STORED);

/** The headers that a request needs. */
export function authorization() {
  return key === null ? {} : { authorization: `Bearer ${key}` };
}

/** Asks for a key, since the server refused a request without one or with this one. */
export function demand() {
  const refused = key !== null;
  ask(refused ? "The server refuses this key." : "This server wants an API key.");
}

function ask(why) {
  reason.textContent = why;
  if (!dialog.open) dialog.showModal();
  input.focus();
}

function use(next) {
  key = next;
  if (key !== null && keep.checked) sessionStorage.setItem(STORED, key);
  else sessionStorage.removeItem(STORED);
  input.value = "";
  button.textContent = key === null ? "API key" : "API key: set";
  dialog.close();
  dispatchEvent(new Event("keychange"));
}

/** Wires the dialog. A changed key is told by a `keychange` event on the window. */
export function start() {
  keep.checked = key !== null;
  button.textContent = key === null ? "API key" : "API key: set";
  button.addEventListener("click", () => ask(""));
  document.getElementById("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const given = input.value.trim();
    // Headers carry visible ASCII; anything else cannot be a key.
    if (/^[\x21-\x7e]+$/.test(given)) use(given);
    else reason.textContent = "A key has visible ASCII characters only.";
  });
  document.getElementById("key-forget").addEventListener("click", () => use(null));
  document.getElementById("key-cancel").addEventListener("click", () => dialog.close());
}
