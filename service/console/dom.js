// Elements are made here, and texts become text nodes: nothing that a model or a name says is ever read as markup.

export const find = (selector, root = document) => root.querySelector(selector);
export const findAll = (selector, root = document) => [...root.querySelectorAll(selector)];

/** An element with properties, `on…` listeners, `data-…`/`aria-…` attributes, and children (texts or elements; null is none). */
export function make(tag, given = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.includes("-") || name === "for" || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** The same of SVG, where everything is an attribute. */
export function draw(tag, given = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(given)) element.setAttribute(name, value);
  element.append(...children.flat());
  return element;
}

/** Says it to a screen reader, once. */
export function announce(text) {
  const place = find("#announcements");
  place.textContent = "";
  setTimeout(() => { place.textContent = text; }, 50);
}

/** Shows what went wrong in `place`, in the server's own words. */
export function problem(place, error) {
  if (error.name === "AbortError") return;
  const needsKey = error.status === 401;
  const open = make("button", { type: "button", className: "link", onclick: () => find("#key-button").click() }, "Give a key");
  place.replaceChildren(make("p", { className: "problem", role: "alert" }, error.message, " ", needsKey ? open : null));
}

/** With a minus sign, and none before a zero. */
export const number = (value, digits = 2) => value.toFixed(digits).replace(/^-(?=[0.]*$)/, "").replace("-", "\u2212");
export const signed = (value, digits = 2) => (number(value, digits).startsWith("\u2212") ? "" : "+") + number(value, digits);
export const when = (seconds) => new Date(seconds * 1000).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
