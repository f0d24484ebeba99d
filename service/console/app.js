// Which part of the page is shown, and whose key is used.

import { key } from "./api.js";
import { find, findAll } from "./dom.js";
import * as compare from "./compare.js";
import * as releases from "./releases.js";
import * as sweeps from "./sweeps.js";
import * as xray from "./xray.js";

const PARTS = { compare, xray, sweeps, releases };
let shown = null;

function show() {
  const name = location.hash.slice(1);
  const part = PARTS[name] ? name : "compare";
  if (name === "main") return;
  for (const section of findAll("main > section")) section.hidden = section.id !== part;
  for (const link of findAll("nav a")) {
    if (link.hash === `#${part}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${find(`#${part} h1`).textContent} · Graftline`;
  if (shown && shown !== part) {
    PARTS[shown].leave?.();
    find("#main").focus({ preventScroll: true });
  }
  shown = part;
  PARTS[part].enter();
}

function labelKey() {
  find("#key-button").textContent = key.get() ? "Key in use" : "Key";
}

function setKey(secret) {
  key.set(secret);
  labelKey();
  find("#key-dialog").close();
  show();
}

for (const part of Object.values(PARTS)) part.begin();
find("#key-button").addEventListener("click", () => {
  find("#key-secret").value = key.get();
  find("#key-dialog").showModal();
});
find("#key-form").addEventListener("submit", () => setKey(find("#key-secret").value.trim()));
find("#key-forget").addEventListener("click", () => setKey(""));
addEventListener("hashchange", show);
labelKey();
show();
