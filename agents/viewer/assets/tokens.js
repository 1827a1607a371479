// The output token by token: its segments marked, and, for training episodes, each token's advantage.

const SEGMENTS = ["other", "memory", "think", "tool call", "answer"];

/** The largest |advantage| of an episode: the end of the scale, so that its turns can be compared. */
function advantageScale(turns) {
  let most = 0;
  for (const turn of turns) for (const a of turn.advantages ?? []) most = Math.max(most, Math.abs(a ?? 0));
  return most;
}

const MOST_TOKENS = 4000;

/** Tokens in runs of one segment. */
function tokenView(turn, most) {
  const runs = [];
  const n = Math.min(turn.tokens.length, MOST_TOKENS);
  for (let i = 0; i < n; i++) {
    const segment = turn.segments[i] ?? 0;
    if (!runs.length || runs.at(-1).segment !== segment) runs.push({ segment, tokens: [], sum: 0 });
    const run = runs.at(-1);
    run.tokens.push(oneToken(turn.tokens[i], turn.advantages[i] ?? 0, most));
    run.sum += turn.advantages[i] ?? 0;
  }
  const parts = runs.map((run) => segmentRun(run.segment, run.tokens,
    `${count(run.tokens.length, "token")}, mean A ${signed(run.sum / run.tokens.length)}`));
  if (n < turn.tokens.length) parts.push(el("p", { class: "quiet" }, `and ${count(turn.tokens.length - n, "more token")}`));
  return el("div", { class: "output" }, parts);
}

function oneToken(text, advantage, most) {
  const strength = most > 0 ? Math.abs(advantage) / most : 0;
  const kind = advantage > 0 ? "plus" : advantage < 0 ? "minus" : "zero";
  const shown = text === "" ? [el("span", { class: "code" }, "\u2205")] : textNodes(text.replaceAll("\n", "\u21b5\n"));
  return el("span", { class: `token ${kind}`, title: `A = ${signed(advantage, 3)}`, vars: { "--a": strength.toFixed(3) } }, shown);
}

/** The output by segments alone, where no advantages are stored. */
function segmentView(turn) {
  return el("div", { class: "output" }, (turn.text ?? []).map(([segment, text]) =>
    segmentRun(segment, textBlock(text, { kind: "inline" }), "")));
}

function segmentRun(segment, content, note) {
  return el("div", { class: `run s${segment}` },
    el("span", { class: "run-name" }, SEGMENTS[segment] ?? "other", note && el("span", { class: "quiet" }, " ", note)),
    el("span", { class: "run-text" }, content));
}

function advantageLegend(most) {
  return el("p", { class: "legend scale" },
    el("span", { class: "token minus", vars: { "--a": 1 } }, num(-most)),
    el("span", { class: "token minus", vars: { "--a": 0.4 } }, num(-0.4 * most)),
    el("span", { class: "token zero" }, "0"),
    el("span", { class: "token plus", vars: { "--a": 0.4 } }, `+${num(0.4 * most)}`),
    el("span", { class: "token plus", vars: { "--a": 1 } }, `+${num(most)}`),
    el("span", { class: "quiet" }, "advantage; dotted below zero. Hover a token for its value."));
}
