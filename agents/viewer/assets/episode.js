// The head of an episode: how it went, its goals with gold and answer, its course over the turns.

function showEpisode(episodes, row, episode, now, { openRow, openTurn }) {
  fill(byId("episode"),
    episodeHead(row, episode),
    relatedLinks(episodes, row, openRow),
    episode.error && el("p", { class: "alert" }, el("b", {}, "Fault outside the agent: "), line(episode.error, 400)),
    el("div", { class: "overview" }, goalTable(episode, row, now),
      episode.turns.length > 0 && el("div", { class: "charts" }, course(episode.turns, now, openTurn))),
  );
}

function course(turns, now, openTurn) {
  return [
    qualityChart(turns, now, openTurn),
    tokenChart(turns, now, openTurn),
    turns.every((turn) => turn.q === undefined) && el("p", { class: "quiet" }, "Q(m) was not stored with these episodes."),
  ];
}

function episodeHead(row, episode) {
  const n = row.m.length;
  const verdict = episode.error ? "Ended by a fault"
    : row.m.includes("?") ? "Scored by the environment"
      : n === 1 ? `The goal is ${row.right ? "right" : "wrong"}`
        : row.right === n ? `${n === 2 ? "Both" : `All ${n}`} goals right` : `${row.right} of ${n} goals right`;
  const ended = { answered: "answered", truncated: "ran out of turns", error: "fault" }[episode.ended];
  const fact = (name, value, title) => el("div", { title }, el("dt", {}, name), el("dd", {}, value));
  return el("header", { class: "episode-head" },
    el("div", {},
      el("p", { class: "where" }, row.name, " ", el("span", { class: "quiet" }, textNodes(
        `group ${row.g}, rollout ${row.r} \u00b7 seed ${episode.seed}`))),
      el("h2", {}, verdict, " ", goalMarks(row.m))),
    el("dl", { class: "numbers" },
      fact("F1", row.f === null ? "\u2013" : num(row.f, 1), "mean over goals, 0 to 100"),
      fact("return", num(row.R, 2), "sum of the rewards of all turns"),
      fact("turns", String(row.t)),
      fact("tokens", row.k.toLocaleString("en"), "input and output of all turns"),
      row.q !== null && fact("last Q(m)", num(row.q, 2), "quality of the last memory"),
      fact("ended", ended)));
}

function relatedLinks(episodes, row, openRow) {
  const others = episodes.related(row);
  if (others.length < 2) return null;
  const same = others.every((other) => other.s === row.s);
  const link = (other) => el("button", {
    type: "button", class: "chip", "aria-current": other === row ? "true" : null, onclick: () => openRow(other),
  }, same ? `rollout ${other.r}` : episodes.sources[other.s] + (other.r ? ` ${other.r}` : ""),
  " ", el("b", {}, other.f === null ? "fault" : num(other.f, 0)));
  return el("p", { class: "related" }, el("span", { class: "quiet" }, same ? "This group, with F1:" : "This task, with F1:"),
    others.slice(0, 24).map(link), others.length > 24 && el("span", { class: "quiet" }, `and ${others.length - 24} more`));
}

function goalTable(episode, row, now) {
  const quality = episode.turns.some((turn) => turn.goals);
  const heads = ["", "Question", "Gold", "Answer", quality && "Q(m) by turn"].filter((head) => head !== false);
  const body = episode.goals.map((goal, k) => {
    const mark = row.m[k];
    const word = mark === "1" ? "right" : mark === "0" ? (goal.given === null ? "none" : "wrong") : "not scored";
    const aliases = goal.gold.length > 1 ? el("span", { class: "quiet", title: goal.gold.join("\n").slice(0, 2000) },
      ` or ${count(goal.gold.length - 1, "alias", "aliases")}`) : null;
    const near = mark === "0" && goal.f1 > 0 && el("span", { class: "quiet" }, ` F1 ${num(goal.f1, 2)}`);
    return el("tr", { class: word },
      el("td", { class: "mark" }, el("span", { class: "verdict" }, mark === "1" ? "\u2713" : mark === "0" ? "\u2717" : "?"),
        el("span", { class: "hidden" }, word)),
      el("td", { "data-head": "Question" }, line(goal.question, 600)),
      el("td", { "data-head": "Gold" }, line(goal.gold[0], 300), aliases),
      el("td", { "data-head": "Answer" }, goal.given === null ? el("span", { class: "quiet" }, "\u2013")
        : goal.given === "" ? el("span", { class: "quiet" }, "empty") : line(goal.given, 300), near),
      quality && el("td", { "data-head": "Q(m)" }, spark(episode.turns, k, now) ?? "\u2013"));
  });
  const head = el("tr", {}, heads.map((text) => el("th", { scope: "col", class: text.split(/\W/)[0].toLowerCase() || "mark" }, text || el("span", { class: "hidden" }, "Result"))));
  const all = episode.given;
  return el("div", { class: "goals" },
    el("table", {}, el("caption", { class: "hidden" }, "Goals with gold answer and given answer"), el("thead", {}, head), el("tbody", {}, body)),
    all && el("p", { class: "alert" }, el("b", {}, `${count(all.length, "answer")} for ${count(row.m.length, "goal")}, so none counts: `),
      line(all.slice(0, 40).join("; "), 600)));
}
