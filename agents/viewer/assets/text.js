// Builds elements and shows text. Everything from an episode goes through here, as text nodes: never as markup.

const SVG = "http://www.w3.org/2000/svg";
const CLIP = 4000;
const MORE = 50000;
// Characters that would be invisible, or would turn the text around them. Joiners stay: scripts and emoji need them.
const HIDDEN = /(?:(?![\n\t\u200c\u200d])[\p{Cc}\p{Cf}\p{Cs}])+/gu;

const byId = (id) => document.getElementById(id);

/** An element; `props` are attributes, `on..` listeners, `class`, and `style` custom properties. */
function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  return dress(node, props, children);
}

function svg(tag, props = {}, ...children) {
  return dress(document.createElementNS(SVG, tag), props, children);
}

function dress(node, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "vars") for (const [key, v] of Object.entries(value)) node.style.setProperty(key, v);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...solid(children));
  return node;
}

/** Children without those that are left out: null, undefined, false. */
const solid = (children) => children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);

const fill = (node, ...children) => node.replaceChildren(...solid(children));

/** Text as nodes: hidden characters by their code, gold answers underlined. */
function textNodes(text, gold = null) {
  const nodes = [];
  let at = 0;
  for (const match of text.matchAll(HIDDEN)) {
    if (match.index > at) nodes.push(...goldNodes(text.slice(at, match.index), gold));
    nodes.push(hiddenNode(match[0]));
    at = match.index + match[0].length;
  }
  if (at < text.length) nodes.push(...goldNodes(text.slice(at), gold));
  return nodes;
}

function hiddenNode(text) {
  const codes = [...text].map((c) => "U+" + c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0"));
  const shown = codes.length > 4 ? `${codes.slice(0, 3).join(" ")} and ${codes.length - 3} more` : codes.join(" ");
  return el("span", { class: "code", title: "characters that cannot be seen" }, shown);
}

function goldNodes(text, gold) {
  if (!gold) return [text];
  const nodes = [];
  let at = 0;
  for (const match of text.matchAll(gold)) {
    if (match.index > at) nodes.push(text.slice(at, match.index));
    nodes.push(el("mark", { class: "gold", title: "a gold answer" }, match[0]));
    at = match.index + match[0].length;
  }
  if (at < text.length) nodes.push(text.slice(at));
  return nodes;
}

/** A pattern for the gold answers of an episode's goals, or null. Yes, no and single characters would mark noise. */
function goldPattern(goals) {
  const answers = new Set(goals.flatMap((goal) => goal.gold).filter((a) => a.length > 1 && a.length < 200));
  for (const noise of ["yes", "no"]) answers.delete(noise);
  if (answers.size === 0) return null;
  const longest = [...answers].sort((a, b) => b.length - a.length).slice(0, 200);
  const parts = longest.map((answer) => answer.replace(/[.*+?^${}()|[\]\\\/-]/g, "\\$&"));
  try {
    return new RegExp(`(?<![\\p{L}\\p{N}])(?:${parts.join("|")})(?![\\p{L}\\p{N}])`, "giu");
  } catch {
    return null; // an answer that makes no pattern, such as one with a lone surrogate, is not marked
  }
}

/** A block of text; a long one begins clipped, and grows on demand, so that a megabyte costs nothing until asked for. */
function textBlock(text, { gold = null, kind = "", clip = CLIP } = {}) {
  const block = el("div", { class: `text ${kind}`, dir: "auto" });
  if (text.length <= clip * 1.25) {
    block.append(...textNodes(text, gold));
    return block;
  }
  let shown = whole(text, clip);
  block.append(...textNodes(text.slice(0, shown), gold));
  const grow = el("button", { type: "button", class: "more" });
  const label = () => {
    grow.textContent = `Show ${Math.min(MORE, text.length - shown).toLocaleString("en")} more characters of ` +
      text.length.toLocaleString("en");
  };
  grow.addEventListener("click", () => {
    const end = whole(text, Math.min(shown + MORE, text.length));
    grow.before(...textNodes(text.slice(shown, end), gold));
    shown = end;
    if (shown >= text.length) grow.remove();
    else label();
  });
  label();
  block.append(grow);
  return block;
}

/** A place to cut that does not divide a character. */
function whole(text, end) {
  const code = text.charCodeAt(end);
  return code >= 0xdc00 && code <= 0xdfff ? end - 1 : end;
}

/** One line of text for lists and buttons. */
function line(text, most = 160) {
  const cut = text.length > most ? text.slice(0, whole(text, most)) + "\u2026" : text;
  return el("bdi", {}, ...textNodes(cut.replace(/\s+/g, " ")));
}

function num(value, digits = 2) {
  if (value === null || value === undefined) return "\u2013";
  const text = Number(value).toFixed(digits);
  return text.startsWith("-") ? "\u2212" + text.slice(1) : text;
}

const signed = (value, digits = 2) => (value > 0 ? "+" : "") + num(value, digits);
const short = (value) => num(value, Number.isInteger(value) ? 0 : 2);
const count = (n, one, many = one + "s") => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
