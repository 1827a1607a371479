// One turn: what the agent was given, what it made of its memory, what it did, what it got.

const MOST_NOTES = 150;

function showTurn(episode, now, openTurn) {
  const turns = episode.turns;
  const box = byId("turn");
  if (turns.length === 0) {
    fill(box, el("p", { class: "quiet" }, "This episode has no turns: it ended before the first output."));
    return;
  }
  const turn = turns[now];
  const gold = goldPattern(episode.goals);
  fill(box,
    stepper(turns, now, openTurn),
    el("div", { class: "turn" },
      el("div", { class: "column" }, given(turn, now, gold), reward(turn)),
      el("div", { class: "column" }, memory(turn, now, gold), thought(turn), action(turn, turns[now + 1], now, gold))),
    output(turn, turns),
  );
}

function stepper(turns, now, openTurn) {
  const step = (by, text, label) => el("button", {
    type: "button", class: "arrow", "aria-label": label, disabled: !turns[now + by], onclick: () => openTurn(now + by),
  }, text);
  const tabs = turns.map((turn, t) => el("button", {
    type: "button", class: `tab ${turn.action.type}`, "aria-current": t === now ? "step" : null, onclick: () => openTurn(t),
  }, el("b", {}, String(t + 1)), " ", actionWord(turn.action)));
  const row = el("div", { class: "tabs" }, tabs);
  requestAnimationFrame(() => {
    const tab = tabs[now]; // not scrollIntoView: that would scroll the page as well
    if (tab.isConnected) row.scrollLeft = tab.offsetLeft - row.offsetLeft - (row.clientWidth - tab.clientWidth) / 2;
  });
  return el("div", { class: "stepper", role: "group", "aria-label": "Turns" },
    step(-1, "\u2190", "Previous turn"), row, step(1, "\u2192", "Next turn"));
}

function actionWord(action) {
  if (action.type === "call") return line(action.name, 20);
  return action.type === "answer" ? "answer" : "format error";
}

function panel(title, note, ...content) {
  return el("section", { class: "panel", "aria-label": title }, el("h3", {}, title, note && el("span", { class: "note" }, note)),
    content);
}

function given(turn, now, gold) {
  return panel("Given", turn.budget ? line(turn.budget, 120) : null,
    turn.result ? textBlock(turn.result, { gold, kind: "result" })
      : el("p", { class: "quiet" }, now === 0 ? "Only the task: nothing was asked yet." : "No tool result."));
}

function memory(turn, now, gold) {
  const before = turn.before ?? "";
  const after = turn.memory ?? "";
  const notes = compareNotes(before, after);
  const per = (kind) => notes.filter((note) => note.kind === kind).length;
  const said = ["added", "changed", "kept", "dropped"].filter(per).map((kind) => `${per(kind)} ${kind}`).join(", ");
  const quality = turn.q !== undefined ? `Q(m) ${num(turn.q, 3)}` : null;
  const items = notes.slice(0, MOST_NOTES).map((note) => noteItem(note, gold));
  const rest = notes.slice(MOST_NOTES);
  const list = el("ul", { class: "notes" }, items);
  if (rest.length) {
    const more = el("button", { type: "button", class: "more", onclick: () => {
      list.append(...rest.splice(0, MOST_NOTES).map((note) => noteItem(note, gold)));
      if (rest.length) more.textContent = `Show more of ${count(rest.length, "note")}`;
      else more.remove();
    } }, `Show more of ${count(rest.length, "note")}`);
    list.after(more);
    return panel("Memory", [said, quality].filter(Boolean).join(" \u00b7 "), list, more);
  }
  return panel("Memory", [said, quality].filter(Boolean).join(" \u00b7 "),
    !turn.written && el("p", { class: "alert" }, "No memory was written: the old one stays."),
    turn.cut && el("p", { class: "alert" }, "The memory was longer than its limit and was cut."),
    notes.length ? list : el("p", { class: "quiet" }, now === 0 ? "Empty: there is nothing to remember yet." : "Empty."));
}

const SIGNS = { added: "+", dropped: "\u2212", changed: "~", kept: "" };
const TAGS = { added: "ins", dropped: "del", kept: "span" };

function noteItem(note, gold) {
  const parts = note.words ?? [{ kind: note.kind, text: note.text }];
  return el("li", { class: note.kind },
    el("span", { class: "sign", title: note.kind }, SIGNS[note.kind], el("span", { class: "hidden" }, note.kind)),
    el("span", { class: "text", dir: "auto" },
      parts.map((part) => el(TAGS[part.kind], {}, clipped(part.text, gold)))));
}

function clipped(text, gold) {
  return text.length > CLIP * 1.25 ? textBlock(text, { gold, kind: "inline" }) : textNodes(text, gold);
}

function thought(turn) {
  return turn.think ? panel("Think", null, textBlock(turn.think, { kind: "think" })) : null;
}

function action(turn, next, now, gold) {
  const what = turn.action;
  if (what.type === "error") {
    return panel("Format error", line(what.kind, 40), el("p", { class: "alert" }, line(what.message, 600)),
      el("p", { class: "quiet" }, "The agent reads this sentence at its next turn."));
  }
  if (what.type === "answer") {
    return panel("Answer", count(what.answers.length, "answer"), el("ol", { class: "answers" },
      what.answers.slice(0, 100).map((answer) => el("li", {}, answer ? line(answer, 600) : el("span", { class: "quiet" }, "empty")))));
  }
  const back = next?.result ? el("details", { class: "back" },
    el("summary", {}, "Result, as given at turn ", String(now + 2)), textBlock(next.result, { gold, kind: "result" })) : null;
  return panel("Tool call", line(what.name, 60), callArguments(what.arguments), back);
}

/** A list of strings as a list, everything else as the JSON it was. */
function callArguments(given) {
  const rows = Object.entries(given ?? {}).slice(0, 40).map(([name, value]) => {
    const items = Array.isArray(value) && value.every((item) => typeof item === "string") ? value.slice(0, 100) : null;
    return [el("dt", {}, line(name, 60)), el("dd", {}, items
      ? el("ul", {}, items.map((item) => el("li", {}, line(item, 600))))
      : textBlock(typeof value === "string" ? value : JSON.stringify(value, null, 1)))];
  });
  return rows.length ? el("dl", { class: "arguments" }, rows) : el("p", { class: "quiet" }, "No arguments.");
}

function reward(turn) {
  const parts = Object.entries(turn.parts ?? {});
  const stop = { length: "output was cut at its limit", eos: "model ended its output" }[turn.stop];
  return panel("Reward", short(turn.reward ?? 0),
    parts.length > 0 && el("table", { class: "parts" }, el("caption", { class: "hidden" }, "Parts of this turn's reward"),
      el("tbody", {}, parts.map(([name, value]) => el("tr", {}, el("th", { scope: "row" }, line(name, 60)),
        el("td", { class: value < 0 ? "n minus" : "n" }, short(value)))))),
    el("p", { class: "quiet" }, `${count(turn.input ?? 0, "token")} in, ${count(turn.output ?? 0, "token")} out`,
      stop && `; the ${stop}`));
}

function output(turn, turns) {
  if (turn.tokens) {
    const most = advantageScale(turns);
    return panel("Output, by advantage", count(turn.tokens.length, "token"), tokenView(turn, most), advantageLegend(most));
  }
  if (!turn.text) return panel("Output", null, el("p", { class: "quiet" }, "Empty."));
  return el("details", { class: "panel raw", open: turn.action.type === "error" }, el("summary", {}, "Output as written"), segmentView(turn));
}
