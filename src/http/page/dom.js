// Elements, and how values are written. Whatever comes from the network goes through here, and becomes text: there is no way
// from a text to markup.

/** An element. Properties beginning with `on` are listeners, `style` sets CSS variables, the others attributes; children are elements or text. */
export function h(name, properties, ...children) {
  const element = name === "svg" || name === "rect" || name === "title" ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(properties ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const $ = (id) => document.getElementById(id);

/** Sets an element's text, when it is another: what does not change is not told again to who listens. */
export function say(element, text) {
  if (element.textContent !== String(text)) element.textContent = text;
}

/** Has `parent` hold one element for each item, in order. An element stays as long as its item does, and with it the focus. */
export function keyed(parent, items, keyOf, make, update) {
  const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  const wanted = items.map((item) => {
    const key = String(keyOf(item));
    const element = old.get(key) ?? make(item);
    element.dataset.key = key;
    update?.(element, item);
    return element;
  });
  const kept = new Set(wanted);
  for (const child of [...parent.children]) if (!kept.has(child)) child.remove();
  wanted.forEach((element, at) => parent.children[at] !== element && parent.insertBefore(element, parent.children[at] ?? null));
}

/** A table whose rows `keyed` looks after. Made once in `place`; returns its body. */
export function table(place, columns, label) {
  const found = place.querySelector("tbody");
  if (found) return found;
  const body = h("tbody");
  const head = columns.map(([text, kind]) => h("th", { scope: "col", class: kind }, text));
  place.replaceChildren(h("table", { "aria-label": label }, h("thead", null, h("tr", null, head)), body));
  return body;
}

export const empty = (place, text) => place.replaceChildren(h("p", { class: "empty" }, text));

const whole = new Intl.NumberFormat("en");
export const count = (value) => (Number.isFinite(value) ? whole.format(value) : "–");
export const many = (value, one, more = `${one}s`) => `${count(value)} ${value === 1 ? one : more}`;
export const short = (hash) => (typeof hash === "string" && hash.length > 12 ? `${hash.slice(0, 8)}…` : String(hash ?? "–"));

/** Milliseconds, as precise as is of use. */
export function ms(value) {
  if (!Number.isFinite(value)) return "–";
  if (value >= 10_000) return `${(value / 1000).toFixed(1)} s`;
  return `${value >= 100 ? Math.round(value) : value.toFixed(value >= 10 ? 1 : 2)} ms`;
}

export function bytes(value) {
  if (!Number.isFinite(value)) return "–";
  const power = value < 1024 ? 0 : value < 1024 ** 2 ? 1 : 2;
  return `${power ? (value / 1024 ** power).toFixed(1) : count(value)} ${["B", "KiB", "MiB"][power]}`;
}

export const clock = (time) => (time ? new Date(time).toLocaleTimeString("en-GB") : "–");
export const moment = (time) => (time ? `${new Date(time).toLocaleDateString("sv-SE")} ${clock(time)}` : "–");

/** Seconds, in the two greatest units. */
export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  const [d, hours, m, s] = [Math.floor(seconds / 86_400), Math.floor(seconds / 3600) % 24, Math.floor(seconds / 60) % 60, Math.floor(seconds) % 60];
  return d ? `${d} d ${hours} h` : hours ? `${hours} h ${m} min` : m ? `${m} min ${s} s` : `${s} s`;
}

/** Bytes of a payload shown at once; the rest is counted. */
const SHOWN_MAX = 4096;
const strict = new TextDecoder("utf-8", { fatal: true });

/** Bytes for people: as text where they are text, else in hexadecimal. */
export function payload(data) {
  const cut = data.subarray(0, SHOWN_MAX), rest = data.length - cut.length;
  const more = rest > 0 ? ` … ${count(rest)} bytes more` : "";
  if (data.length === 0) return "(nothing)";
  try {
    // What is cut may end within a character.
    const text = rest > 0 ? new TextDecoder().decode(cut).replace(/\uFFFD$/, "") : strict.decode(cut);
    // No control character but line ends and tabs is shown as it is: some turn the direction of what follows.
    if (!text.includes("\uFFFD")) return text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, "\u00b7") + more;
  } catch { /* no text */ }
  return Array.from(cut, (byte) => byte.toString(16).padStart(2, "0")).join("") + more;
}
