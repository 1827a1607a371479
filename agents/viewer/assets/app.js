// The whole: which episode and turn are shown, the link that names them, keys, theme.

const KEYS = [
  ["\u2190  \u2192", "turn before, turn after"],
  ["\u2191  \u2193", "episode before, episode after"],
  ["Home  End", "first turn, last turn"],
  ["/", "search"],
  ["t", "light, dark, or as the system has it"],
  ["?", "this help"],
];
const THEMES = ["auto", "light", "dark"];

const state = { row: null, episode: null, turn: 0 };
let episodes;
let list;

async function openRow(row, turn = 0, { scroll = true } = {}) {
  if (!row) return;
  state.row = row;
  list.select(row);
  const episode = await episodes.body(row);
  if (state.row !== row) return; // another was asked for in the meantime
  state.episode = episode;
  closeMenu();
  if (scroll) window.scrollTo(0, 0);
  openTurn(turn);
}

function openTurn(turn) {
  const { row, episode } = state;
  if (!episode) return;
  const held = document.activeElement?.closest(".arrow, .tab")?.className.split(" ")[0];
  const label = document.activeElement?.getAttribute("aria-label");
  state.turn = Math.min(Math.max(turn, 0), Math.max(episode.turns.length - 1, 0));
  showEpisode(episodes, row, episode, state.turn, { openRow: (other) => openRow(other, state.turn, { scroll: false }), openTurn });
  showTurn(episode, state.turn, openTurn);
  if (held === "tab") byId("turn").querySelector(".tab[aria-current]")?.focus({ preventScroll: true });
  if (held === "arrow") byId("turn").querySelector(`.arrow[aria-label="${label}"]`)?.focus({ preventScroll: true });
  const link = `#${encodeURI(row.name)}/${state.turn + 1}`;
  if (location.hash !== link) history.replaceState(null, "", link);
  document.title = `${row.name}, turn ${state.turn + 1} \u2013 ${episodes.title}`;
  byId("live").textContent = `${row.name}, turn ${state.turn + 1} of ${episode.turns.length}`;
}

/** [row, turn] of the link in the address, or the first episode. */
function fromLink() {
  let name = "";
  try {
    name = decodeURI(location.hash.slice(1));
  } catch {
    // a link that was cut in the middle of an escape names nothing
  }
  const cut = name.lastIndexOf("/");
  const row = episodes.named(name.slice(0, cut)) ?? episodes.named(name);
  return row ? [row, Number(name.slice(cut + 1)) - 1 || 0] : [null, 0];
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  const typing = event.target.closest("input, select, textarea");
  if (typing) {
    if (event.key === "Escape") typing.blur();
    return;
  }
  const last = (state.episode?.turns.length ?? 1) - 1;
  const does = {
    ArrowLeft: () => openTurn(state.turn - 1),
    ArrowRight: () => openTurn(state.turn + 1),
    ArrowUp: () => openRow(list.step(-1)),
    ArrowDown: () => openRow(list.step(1)),
    Home: () => openTurn(0),
    End: () => openTurn(last),
    "/": () => (openMenu(), byId("search").focus(), byId("search").select()),
    "?": () => byId("help").showModal(),
    t: () => nextTheme(),
    Escape: () => closeMenu(),
  }[event.key];
  if (!does) return;
  event.preventDefault();
  does();
}

// On a narrow screen the list lies over the episode.
function openMenu() {
  document.body.classList.add("menu");
  byId("menu").setAttribute("aria-expanded", "true");
  list.draw();
}

function closeMenu() {
  document.body.classList.remove("menu");
  byId("menu").setAttribute("aria-expanded", "false");
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme-name").textContent = theme;
  try {
    localStorage.setItem("mempo-view-theme", theme);
  } catch {
    // a page from a file may have no storage: the theme then lasts as long as the page
  }
}

function nextTheme() {
  setTheme(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length]);
}

function storedTheme() {
  try {
    const theme = localStorage.getItem("mempo-view-theme");
    return THEMES.includes(theme) ? theme : "auto";
  } catch {
    return "auto";
  }
}

function fillHelp() {
  byId("keys").append(...KEYS.flatMap(([keys, what]) => [
    el("dt", {}, keys.split("  ").map((key) => el("kbd", {}, key))), el("dd", {}, what)]));
  byId("marks").append(
    el("ul", { class: "notes" },
      [["added", "a note that is new"], ["kept", "one that stayed, wherever it stands"], ["dropped", "one that is gone"]].map(
        ([kind, text]) => noteItem({ kind, text }, null)),
      noteItem({ kind: "changed", words: compareWords("one whose words were changed", "one whose words have changed") }, null)),
    el("p", {}, el("mark", { class: "gold" }, "gold"), " stands where a text holds a gold answer."),
    el("p", {}, goalMarks("110"), " one box per goal: filled where the answer is right."),
    el("p", { class: "quiet" }, "Every episode and turn has its own address: copy it from the browser to share it."));
}

async function start() {
  setTheme(storedTheme());
  fillHelp();
  episodes = new Episodes(await unpack("index"));
  byId("title").textContent = episodes.title;
  byId("facts").append(...Object.entries(episodes.facts).map(([name, value]) =>
    el("span", {}, el("span", { class: "quiet" }, name, " "), line(value, 60))));
  list = new List(episodes, (row) => openRow(row));
  list.filter();
  document.addEventListener("keydown", onKey);
  window.addEventListener("hashchange", () => openRow(...fromLink()));
  byId("menu").addEventListener("click", () => (document.body.classList.contains("menu") ? closeMenu() : openMenu()));
  byId("theme").addEventListener("click", nextTheme);
  byId("help-open").addEventListener("click", () => byId("help").showModal());
  byId("skip").addEventListener("click", (event) => {
    event.preventDefault();
    byId("turn").focus();
  });
  const [row, turn] = fromLink();
  await openRow(row ?? episodes.rows[0], turn);
  byId("loading").remove();
  document.documentElement.dataset.ready = "true";
}

start().catch((error) => {
  byId("loading").textContent = `The episodes cannot be shown: ${error.message}. A browser of 2023 or later is needed.`;
  throw error;
});
