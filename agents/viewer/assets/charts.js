// Small pictures of an episode, drawn as SVG: Q(m) over turns, tokens per turn, and a line of Q for each goal.

const WIDE = 320;
const HIGH = 104;
const LEFT = 30;
const FOOT = 16;
const TOP = 8;

const place = (t, n) => LEFT + ((WIDE - LEFT - 6) * (t + 0.5)) / n;

/** Tick marks of the turns: all of them where there is room, else every 5th, 10th and so on. */
function turnTicks(n) {
  const step = [1, 2, 5, 10, 20, 50, 100].find((s) => n / s <= 16) ?? 500;
  return Array.from({ length: n }, (_, t) => t).filter((t) => t === 0 || (t + 1) % step === 0);
}

function frame(title, summary, n, now, pick, ...marks) {
  const width = (WIDE - LEFT - 6) / n;
  const hits = Array.from({ length: n }, (_, t) =>
    svg("rect", {
      class: t === now ? "here" : "hit", x: place(t, n) - width / 2, y: TOP, width, height: HIGH - TOP - FOOT,
      onclick: () => pick(t),
    }));
  const ticks = turnTicks(n).map((t) => svg("text", { class: "tick", x: place(t, n), y: HIGH - 3, "text-anchor": "middle" },
    String(t + 1)));
  return el("figure", { class: "chart" },
    el("figcaption", {}, title),
    svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": summary }, hits, marks, ticks));
}

function scale(most) {
  const room = HIGH - TOP - FOOT;
  return (value) => TOP + room * (1 - value / most);
}

function rule(value, label, y) {
  return [
    svg("line", { class: "rule", x1: LEFT, x2: WIDE - 6, y1: y(value), y2: y(value) }),
    svg("text", { class: "tick", x: LEFT - 5, y: y(value) + 3.5, "text-anchor": "end" }, label),
  ];
}

/** Q(m) over turns; turns that wrote no memory leave a gap that the line crosses. */
function qualityChart(turns, now, pick) {
  const points = turns.map((turn, t) => [t, turn.q]).filter(([, q]) => q !== undefined && q !== null);
  if (points.length === 0) return null;
  const y = scale(1);
  const at = points.map(([t, q]) => `${place(t, turns.length)},${y(q)}`).join(" ");
  const dots = points.map(([t, q]) => svg("g", {},
    svg("circle", { class: t === now ? "dot now" : "dot", cx: place(t, turns.length), cy: y(q), r: t === now ? 4.5 : 3 }),
    svg("title", {}, `turn ${t + 1}: Q(m) ${num(q, 3)}`)));
  const label = points.filter(([t]) => t === now).map(([t, q]) =>
    svg("text", { class: "value", x: place(t, turns.length), y: y(q) + (q > 0.8 ? 16 : -8), "text-anchor": "middle" }, num(q, 2)));
  const said = points.map(([t, q]) => `turn ${t + 1} ${num(q, 2)}`).join(", ");
  return frame("Memory quality Q(m)", `Memory quality by turn: ${said}`, turns.length, now, pick,
    rule(0, "0", y), rule(0.5, ".5", y), rule(1, "1", y), svg("polyline", { class: "curve", points: at }), dots, label);
}

/** Tokens of each turn: input below, output on top. */
function tokenChart(turns, now, pick) {
  const most = niceMost(Math.max(1, ...turns.map((turn) => (turn.input ?? 0) + (turn.output ?? 0))));
  const y = scale(most);
  const width = Math.max(1, Math.min(26, ((WIDE - LEFT - 6) / turns.length) * 0.6));
  const bars = turns.map((turn, t) => {
    const [input, output] = [turn.input ?? 0, turn.output ?? 0];
    const x = place(t, turns.length) - width / 2;
    return svg("g", {},
      svg("rect", { class: "bar in", x, width, y: y(input), height: y(0) - y(input) }),
      svg("rect", { class: "bar out", x, width, y: y(input + output), height: y(input) - y(input + output) }),
      svg("title", {}, `turn ${t + 1}: ${input} in, ${output} out`));
  });
  const here = turns[now];
  const said = turns.map((turn, t) => `turn ${t + 1} ${(turn.input ?? 0) + (turn.output ?? 0)}`).join(", ");
  return frame(
    ["Tokens per turn", el("span", { class: "legend" }, el("i", { class: "swatch in" }), `in ${here?.input ?? 0}`,
      el("i", { class: "swatch out" }), `out ${here?.output ?? 0}`)],
    `Tokens by turn: ${said}`, turns.length, now, pick, rule(0, "0", y), rule(most, compact(most), y), bars);
}

function niceMost(value) {
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 5, 7.5, 10].map((m) => m * unit).find((m) => m >= value);
}

const compact = (value) => (value >= 1000 ? `${+(value / 1000).toFixed(1)}k` : String(value));

/** A goal's Q over turns as a line of a table's height, with its value at the turn that is shown. */
function spark(turns, k, now) {
  const points = turns.map((turn, t) => [t, turn.goals?.[k]]).filter(([, q]) => q !== undefined && q !== null);
  if (points.length === 0) return null;
  const [wide, high] = [84, 22];
  const x = (t) => 4 + ((wide - 8) * (turns.length === 1 ? 0.5 : t / (turns.length - 1)));
  const y = (q) => 3 + (high - 6) * (1 - q);
  const here = points.filter(([t]) => t <= now).at(-1);
  const said = points.map(([t, q]) => `turn ${t + 1} ${num(q, 2)}`).join(", ");
  return el("span", { class: "spark" },
    svg("svg", { width: wide, height: high, viewBox: `0 0 ${wide} ${high}`, role: "img", "aria-label": `Q by turn: ${said}` },
      svg("line", { class: "rule", x1: 0, x2: wide, y1: y(0), y2: y(0) }),
      svg("polyline", { class: "curve", points: points.map(([t, q]) => `${x(t)},${y(q)}`).join(" ") }),
      here && svg("circle", { class: "dot now", cx: x(here[0]), cy: y(here[1]), r: 3 })),
    el("span", { class: "n" }, here ? num(here[1], 2) : "\u2013"));
}
