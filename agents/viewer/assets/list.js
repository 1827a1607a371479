// The list of episodes: filters, sorting, and rows that are built only while they are in sight.

const ROW = 56; // height of a row in CSS pixels; parts.css has the same number
const RESULTS = [
  ["", "all", () => true],
  ["right", "every goal right", (row) => row.right === row.m.length],
  ["part", "some goals right", (row) => row.right > 0 && row.right < row.m.length],
  ["none", "no goal right", (row) => row.right === 0 && !row.m.includes("?")],
  ["truncated", "no answer in time", (row) => row.e === "truncated"],
  ["format", "with a format error", (row) => row.x > 0],
  ["fault", "ended by a fault", (row) => row.e === "error"],
];
const SORTS = [
  ["", "as stored", (row) => row.at],
  ["worst", "F1, lowest first", (row) => row.f ?? 101],
  ["best", "F1, highest first", (row) => -(row.f ?? -1)],
  ["return", "return, highest first", (row) => -(row.R ?? -Infinity)],
  ["quality", "last Q(m), lowest first", (row) => row.q ?? 2],
  ["turns", "turns, most first", (row) => -row.t],
  ["tokens", "tokens, most first", (row) => -row.k],
];

class List {
  constructor(episodes, open) {
    this.episodes = episodes;
    this.open = open;
    this.shown = [];
    this.row = null;
    this.box = byId("list");
    this.rows = byId("rows");
    this.fillFilters();
    for (const id of ["search", "source", "goals", "result", "sort"]) {
      byId(id).addEventListener("input", () => this.filter());
    }
    byId("filters").addEventListener("submit", (event) => event.preventDefault());
    this.box.addEventListener("scroll", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(this.box);
  }

  fillFilters() {
    const { rows, sources } = this.episodes;
    const offer = (id, options) => byId(id).replaceChildren(...options.map(([value, text]) => el("option", { value }, text)));
    const per = new Map();
    for (const row of rows) per.set(row.s, (per.get(row.s) ?? 0) + 1);
    offer("source", [["", `everything (${rows.length.toLocaleString("en")})`],
      ...sources.map((name, s) => [String(s), `${name} (${(per.get(s) ?? 0).toLocaleString("en")})`])]);
    const goals = [...new Set(rows.map((row) => row.m.length))].sort((a, b) => a - b);
    offer("goals", [["", "any number"], ...goals.map((n) => [String(n), String(n)])]);
    offer("result", RESULTS);
    offer("sort", SORTS);
  }

  filter() {
    const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const [source, goals] = [byId("source").value, byId("goals").value];
    const fits = RESULTS.find(([name]) => name === byId("result").value)[2];
    const key = SORTS.find(([name]) => name === byId("sort").value)[2];
    this.shown = this.episodes.rows.filter((row) =>
      (source === "" || row.s === Number(source)) && (goals === "" || row.m.length === Number(goals)) &&
      fits(row) && words.every((word) => row.find.includes(word)));
    this.shown.sort((a, b) => key(a) - key(b) || a.at - b.at);
    const scored = this.shown.filter((row) => row.f !== null);
    const mean = scored.reduce((sum, row) => sum + row.f, 0) / scored.length;
    byId("count").textContent = count(this.shown.length, "episode") + (scored.length ? `, mean F1 ${num(mean, 1)}` : "");
    this.box.scrollTop = 0;
    this.draw();
  }

  /** Shows every episode again where a filter hides one that a link names. */
  reset() {
    for (const id of ["search", "source", "goals", "result"]) byId(id).value = "";
    this.filter();
  }

  select(row) {
    if (!this.shown.includes(row)) this.reset();
    this.row = row;
    const at = this.shown.indexOf(row);
    const [top, room] = [at * ROW, this.box.clientHeight];
    if (top < this.box.scrollTop) this.box.scrollTop = top;
    else if (top + ROW > this.box.scrollTop + room) this.box.scrollTop = top + ROW - room;
    this.draw();
  }

  /** The row so many places after the selected one; the first or last at the ends. */
  step(by) {
    if (!this.shown.length) return null;
    const at = this.shown.indexOf(this.row);
    return this.shown[Math.min(Math.max(at < 0 ? 0 : at + by, 0), this.shown.length - 1)];
  }

  draw() {
    const first = Math.max(Math.floor(this.box.scrollTop / ROW) - 4, 0);
    const last = Math.min(Math.ceil((this.box.scrollTop + this.box.clientHeight) / ROW) + 4, this.shown.length);
    const rows = this.shown.slice(first, last).map((row, k) => this.option(row, first + k));
    this.rows.style.setProperty("--before", `${first * ROW}px`);
    this.rows.style.setProperty("--all", `${this.shown.length * ROW}px`);
    this.rows.replaceChildren(...rows);
    if (!this.shown.length) this.rows.replaceChildren(el("p", { class: "quiet" }, "No episode fits these filters."));
    const active = this.rows.querySelector("[aria-selected=true]");
    if (active) this.box.setAttribute("aria-activedescendant", active.id);
    else this.box.removeAttribute("aria-activedescendant");
  }

  option(row, at) {
    const question = row.p.slice(0, row.p.indexOf("\n"));
    const score = row.f === null ? "fault" : num(row.f, 0);
    return el("div", {
      role: "option", class: "row", id: `row-${row.at}`, "aria-selected": row === this.row ? "true" : "false",
      "aria-setsize": this.shown.length, "aria-posinset": at + 1, onclick: () => this.open(row),
      "aria-label": `${row.name}, ${row.right} of ${row.m.length} goals right, F1 ${score}, ${count(row.t, "turn")}`,
    },
    el("span", { class: "row-name" }, line(question, 90)),
    el("span", { class: "row-score", title: "F1" }, score),
    el("span", { class: "row-facts" }, goalMarks(row.m), el("span", {}, row.name), el("span", {}, count(row.t, "turn")),
      row.x > 0 && el("span", { class: "warn" }, count(row.x, "format error")),
      row.e === "truncated" && el("span", { class: "warn" }, "no answer")));
  }
}

/** One small box per goal: filled where it was right, hollow where not, so that it reads without colour. */
function goalMarks(marks) {
  return el("span", { class: "goal-marks", "aria-hidden": "true" },
    [...marks].map((mark) => el("i", { class: mark === "1" ? "yes" : mark === "0" ? "no" : "unknown" })));
}
