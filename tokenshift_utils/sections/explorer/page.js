"use strict";
// Numbers first: what the page was made with is unpacked, then everything is drawn from `state`.
(async () => {
const unpack = async () => {
  const bytes = Uint8Array.from(atob(document.getElementById("content").textContent), c => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
};
const $ = id => document.getElementById(id);
if (typeof DecompressionStream === "undefined") {
  $("finding").textContent = "This browser cannot unpack the page: open it in one of 2023 or later.";
  return;
}
const data = await unpack();
const LN2 = Math.log(2);
const SHOWN = 400; // tokens of a continuation
const ROLES = ["base", "tuned"];

// What the records say ---------------------------------------------------------------------------

for (const r of data.responses) {
  r.parent = r.parent.map((step, node) => node - step);
  r.index = new Map(r.at.map((node, i) => [node, i]));
  r.end = new Map(r.ends.map(([node, eos, right], i) => [node, {eos, right, answer: data.strings[r.answers[i]]}]));
}
const path = (r, node) => {
  const nodes = [];
  for (; node > 0; node = r.parent[node]) nodes.push(node);
  return nodes.reverse();
};
const going = (r, side, node) => { // a model's own way from a prefix
  const nodes = [];
  while ((node = r.own[side][node])) nodes.push(node);
  return nodes;
};
const piece = (r, node) => data.strings[r.piece[node]];
const isSpecial = (r, node) => r.end.has(node) && r.end.get(node).eos;
const places = [...new Set(data.responses.map(r => JSON.stringify([r.benchmark, r.problem])))].map(s => JSON.parse(s));
const label = model => data.models[model].label;
const model = side => side ? state.pair : data.base;
const primary = () => state.way === "forward" ? 0 : 1;
const here = () => data.responses.find(r => r.pair === state.pair && r.benchmark === state.benchmark && r.problem === state.problem && r.sample === state.sample);
const curve = () => data.curves[state.pair][state.way][state.rule];
const mixture = () => here().mixtures[state.way][state.rule][state.stop];

const stopName = (rule, t) => {
  if (t === null) return "nothing put in";
  if (t < 0) return "every position";
  if (rule === "random") return `random positions, ${percent(t, t < 0.1 ? 1 : 0)} of them`;
  if (rule === "first") return `first ${t} position${t === 1 ? "" : "s"}`;
  return `${data.rules[rule]} > ${t}`;
};
const ruleName = rule => data.rules[rule];

// State and the URL's fragment -------------------------------------------------------------------

const rulesOf = (pair, way) => Object.keys(data.curves[pair][way]);
const available = rule => {
  const r = here();
  return r && rule in r.mixtures[state.way] && r.mixtures[state.way][rule].some((m, i) => i && m);
};
const state = {};
function start() {
  const pair = Object.keys(data.curves)[0], way = Object.keys(data.curves[pair])[0], rule = rulesOf(pair, way)[0];
  const stops = data.curves[pair][way][rule].stops;
  const usual = stops.findIndex(s => s.t === data.start);
  const stop = usual > 0 ? usual : stops.length - 1;
  const own = data.responses.filter(r => r.pair === pair);
  const turned = own.find(r => {
    const found = r.mixtures[way][rule], right = m => m && r.end.get(m[0]).right;
    return right(found[stop]) && !right(found[0]);
  }) || own[0];
  return {pair, way, rule, stop, benchmark: turned.benchmark, problem: turned.problem, sample: turned.sample, token: null};
}
function restore() {
  const asked = new URLSearchParams(location.hash.slice(1));
  Object.assign(state, start());
  const take = (name, known) => { if (asked.has(name) && known(asked.get(name))) state[name] = asked.get(name); };
  take("pair", v => Object.hasOwn(data.curves, v));
  take("way", v => Object.hasOwn(data.curves[state.pair], v));
  take("rule", v => rulesOf(state.pair, state.way).includes(v));
  const at = places.find(([b, p]) => b === asked.get("benchmark") && p === asked.get("problem"));
  if (at) {
    [state.benchmark, state.problem] = at;
    state.sample = 0;
    const sample = Number(asked.get("sample"));
    if (data.responses.some(r => r.benchmark === at[0] && r.problem === at[1] && r.sample === sample)) state.sample = sample;
  }
  settle(asked.has("t") ? (asked.get("t") === "none" ? null : Number(asked.get("t"))) : undefined);
  const token = asked.has("token") ? Number(asked.get("token")) : NaN;
  state.token = Number.isInteger(token) && token >= 0 && token < path(here(), mixture()[0]).length ? token : firstPut();
}
// Keep what is shown among what there is: a rule that the response has, a threshold that it has.
function settle(t) {
  if (!available(state.rule)) state.rule = rulesOf(state.pair, state.way).find(available);
  const stops = curve().stops;
  if (t !== undefined) {
    const found = stops.findIndex(s => s.t === t);
    state.stop = found >= 0 ? found : state.stop;
  }
  state.stop = Math.min(state.stop, stops.length - 1);
  while (state.stop > 0 && !mixtureAt(state.stop)) state.stop--;
}
const mixtureAt = stop => here().mixtures[state.way][state.rule][stop];
function remember() {
  const t = curve().stops[state.stop].t;
  const at = new URLSearchParams({pair: state.pair, way: state.way, rule: state.rule, benchmark: state.benchmark,
    problem: state.problem, sample: state.sample, t: t === null ? "none" : t, token: state.token});
  try { history.replaceState(null, "", `#${at}`); } catch { /* inside a notebook there is no address */ }
}

// Drawing ----------------------------------------------------------------------------------------

const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
};
const percent = (x, digits = 0) => x === null ? "not measured" : `${(100 * x).toFixed(digits)}%`;
const interval = ([value, low, high]) => value === null ? "not measured"
  : `${(100 * value).toFixed(1)}%${low === null ? "" : ` [${(100 * low).toFixed(1)}, ${(100 * high).toFixed(1)}]`}`;
const share = x => x === null ? "an unmeasured share" : `${(100 * x).toFixed(x < 0.1 ? 1 : 0)}%`;
const named = side => make("b", {class: ROLES[side]}, label(model(side)));
const quoted = text => make("code", {}, ...spaced(text));
const fixed = (x, digits = 3) => x === null || x === undefined ? "–" : x >= 0.0005 || x === 0 ? x.toFixed(digits) : "< 0.0005";

// A token's text with its spaces and line breaks made visible; what is copied is the text itself.
function spaced(text) {
  const parts = [];
  for (const part of text.split(/([ \n])/)) {
    if (part === " ") parts.push(make("span", {class: "s"}, " "));
    else if (part === "\n") parts.push(make("span", {class: "n"}, "\n"));
    else if (part) parts.push(part);
  }
  return parts;
}
const shade = js => `rgba(var(--js), calc(var(--most) * ${Math.sqrt(Math.min(js, LN2) / LN2).toFixed(3)}))`;

function fill(select, options, value) { // [value, text, group, disabled]
  select.replaceChildren();
  const groups = new Map();
  for (const [v, text, group, disabled] of options) {
    const option = make("option", {value: v}, text);
    option.disabled = Boolean(disabled);
    if (group === undefined) { select.append(option); continue; }
    if (!groups.has(group)) { groups.set(group, make("optgroup", {label: group})); select.append(groups.get(group)); }
    groups.get(group).append(option);
  }
  select.value = value;
}
function drawControls() {
  document.documentElement.style.setProperty("--raw-base", data.models[data.base].color);
  document.documentElement.style.setProperty("--raw-tuned", data.models[state.pair].color);
  const base = label(data.base), tuned = label(state.pair);
  fill($("pair"), Object.keys(data.curves).map(m => [m, `${base} and ${label(m)}`]), state.pair);
  fill($("way"), [["forward", `${base} writes, ${tuned}'s tokens are put in`], ["reverse", `${tuned} writes, ${base}'s tokens are put in`]], state.way);
  fill($("rule"), rulesOf(state.pair, state.way).map(rule => {
    const where = data.curves[state.pair][state.way][rule].where;
    const note = available(rule) ? "" : where ? ` (only on ${data.benchmarks[where]})` : " (not of this sample)";
    return [rule, ruleName(rule) + note, undefined, !available(rule)];
  }), state.rule);
  fill($("problem"), places.map(([b, p]) => [JSON.stringify([b, p]), p, data.benchmarks[b]]), JSON.stringify([state.benchmark, state.problem]));
  const samples = data.responses.filter(r => r.pair === state.pair && r.benchmark === state.benchmark && r.problem === state.problem);
  fill($("sample"), samples.map(r => [String(r.sample), String(r.sample)]), String(state.sample));
  const stops = curve().stops;
  $("stop").max = stops.length - 1;
  $("stop").value = state.stop;
  $("most").textContent = stopName(state.rule, stops.at(-1).t);
  const name = stopName(state.rule, stops[state.stop].t);
  $("stop-name").textContent = name;
  $("stop").setAttribute("aria-valuetext", name);
}

function drawFinding() {
  const {where, stops, goal} = curve(), at = stops[state.stop];
  const names = Object.values(data.benchmarks);
  const scope = where ? data.benchmarks[where] : names.length > 1 ? "all benchmarks" : names[0];
  const [one, other] = [label(model(primary())), label(model(1 - primary()))];
  const alone = `${other} alone: ${percent(goal[0])}`;
  $("finding").textContent = at.t === null
    ? `${one} alone is right in ${percent(at.accuracy[0])} of its responses (${alone})`
    : `With ${share(at.share[0])} of ${one}'s tokens replaced by ${other}'s, ${percent(at.accuracy[0])} of its responses are right (${one} alone: ${percent(stops[0].accuracy[0])}, ${alone})`;
  $("levels").replaceChildren(
    `${data.study.title}; ${scope}. `,
    ...(at.t === null ? [] : [`${stopName(state.rule, at.t)}: ${interval(at.accuracy)} of ${at.responses} responses. `]),
    named(primary()), ` alone ${interval(stops[0].accuracy)}, `, named(1 - primary()), ` alone ${interval(goal)}. `,
    at.t === null ? "Move the threshold to put in tokens." : "");
}

const SVG = "http://www.w3.org/2000/svg";
const draw = (parent, tag, attributes, text) => {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
};
function drawCurve() {
  const {stops, goal} = curve(), box = $("curve"), width = Math.max(280, box.clientWidth), height = 190;
  const left = 40, right = 14, top = 22, bottom = 26;
  const values = [...stops.flatMap(s => s.accuracy), ...goal].filter(v => v !== null);
  const low = Math.max(0, Math.floor(10 * Math.min(...values) - 0.2) / 10), high = Math.min(1, Math.ceil(10 * Math.max(...values) + 0.2) / 10);
  const x = i => left + (width - left - right) * (stops.length > 1 ? i / (stops.length - 1) : 0.5);
  const y = v => top + (height - top - bottom) * (1 - (v - low) / (high - low || 1));
  const now = stops[state.stop];
  const said = `Accuracy at each threshold. ${stopName(state.rule, now.t)}: ${interval(now.accuracy)}. ${label(model(primary()))} alone: ${interval(stops[0].accuracy)}. ${label(model(1 - primary()))} alone: ${interval(goal)}.`;
  const svg = document.createElementNS(SVG, "svg");
  for (const [n, v] of Object.entries({width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": said})) svg.setAttribute(n, v);
  const step = high - low > 0.5 ? 0.2 : 0.1;
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + 1e-9; tick += step) {
    draw(svg, "line", {x1: left, x2: width - right, y1: y(tick), y2: y(tick), stroke: "var(--line)", "stroke-width": 0.6});
    draw(svg, "text", {x: left - 6, y: y(tick) + 4, "text-anchor": "end", class: "faint"}, percent(tick));
  }
  const levels = [[primary(), stops[0].accuracy[0]], [1 - primary(), goal[0]]].filter(l => l[1] !== null);
  for (const [side, level] of levels) {
    draw(svg, "line", {x1: left, x2: width - right, y1: y(level), y2: y(level), stroke: `var(--${ROLES[side]})`, "stroke-dasharray": side ? "6 4" : "2 3", "stroke-width": 1.6});
    // The curve leaves the primary's level on the left and comes to the other's on the right.
    const place = side === primary() ? {x: width - right, "text-anchor": "end"} : {x: left + 4, "text-anchor": "start"};
    const upper = level >= Math.max(...levels.map(l => l[1]));
    draw(svg, "text", {...place, y: y(level) + (upper ? -5 : 14), style: `fill:var(--${ROLES[side]});font-weight:600`}, `${label(model(side))} alone`);
  }
  const known = stops.map((s, i) => [i, s.accuracy]).filter(([, a]) => a[0] !== null);
  const banded = known.filter(([, a]) => a[1] !== null);
  if (banded.length > 1) draw(svg, "polygon", {points: [...banded.map(([i, a]) => `${x(i)},${y(a[2])}`), ...banded.reverse().map(([i, a]) => `${x(i)},${y(a[1])}`)].join(" "), fill: "var(--ink)", opacity: 0.12});
  draw(svg, "polyline", {points: known.map(([i, a]) => `${x(i)},${y(a[0])}`).join(" "), fill: "none", stroke: "var(--ink)", "stroke-width": 2});
  draw(svg, "line", {x1: x(state.stop), x2: x(state.stop), y1: top, y2: height - bottom, stroke: "var(--ink)", "stroke-width": 1, opacity: 0.5});
  for (const [i, a] of known) draw(svg, "circle", {cx: x(i), cy: y(a[0]), r: i === state.stop ? 6 : 3.5, fill: i === state.stop ? "var(--ink)" : "var(--paper)", stroke: "var(--ink)", "stroke-width": 2});
  const room = (width - left - right) / Math.max(1, stops.length - 1);
  const wide = i => 8 + 7 * String(stops[i].t ?? "none").length; // of a label, in pixels
  const apart = (i, k) => Math.abs(i - k) * room >= (wide(i) + wide(k)) / 2;
  const labelled = [state.stop];
  for (const i of [0, stops.length - 1, ...stops.keys()]) if (labelled.every(k => apart(i, k))) labelled.push(i);
  stops.forEach((s, i) => {
    const name = s.t === null ? "none" : s.t < 0 ? "all" : String(s.t).replace(/^0\./, ".");
    if (labelled.includes(i)) draw(svg, "text", {x: x(i), y: height - 8, "text-anchor": "middle", class: i === state.stop ? "" : "faint", style: i === state.stop ? "font-weight:700" : ""}, name);
    const target = draw(svg, "rect", {x: x(i) - room / 2, y: 0, width: room, height, fill: "transparent", class: "at"});
    target.addEventListener("click", () => moveTo(i));
  });
  box.replaceChildren(svg);
  const thumb = 8; // half of a slider's thumb: its middle is under the curve's point
  $("stop").style.marginLeft = `${left - thumb}px`;
  $("stop").style.width = `${width - left - right + 2 * thumb}px`;
}

function drawResponse(focus) {
  const r = here(), [leaf, switched] = mixture(), nodes = path(r, leaf), put = new Set(switched), side = primary();
  state.token = Math.max(0, Math.min(state.token, nodes.length - 1));
  const box = $("response"), from = `var(--${ROLES[1 - side]})`;
  box.style.setProperty("--from", from);
  let replaced = 0;
  box.replaceChildren(...nodes.map((node, position) => {
    const before = r.parent[node], i = r.index.get(before), js = r.measured.js[i];
    const isNew = put.has(position) && r.own[side][before] !== node;
    replaced += isNew;
    const said = put.has(position) ? (isNew ? `, put in from ${label(model(1 - side))}` : `, put in, the same token`) : "";
    const token = make("span", {
      class: `t${put.has(position) ? (isNew ? " new" : " put") : ""}${isSpecial(r, node) ? " special" : ""}`,
      role: "option", tabindex: position === state.token ? 0 : -1, "aria-selected": position === state.token,
      "aria-label": `${visible(piece(r, node))}, position ${position}, JS ${fixed(js)}${said}`,
      "data-position": position, style: `background-color:${shade(js)}`,
    }, ...spaced(piece(r, node)));
    return token;
  }));
  if (focus) box.children[state.token].focus();
  const end = r.end.get(leaf), alone = s => r.end.get(r.mixtures[s ? "reverse" : "forward"][Object.keys(r.mixtures[s ? "reverse" : "forward"])[0]][0][0]);
  const verdict = e => !e.eos ? "cut off, wrong" : e.right ? "right" : "wrong";
  const answer = e => e.answer ? `${e.answer}, ${verdict(e)}` : `no answer, ${verdict(e)}`;
  $("problem-text").textContent = r.text.trim();
  const words = put.size === 0 ? [named(side), " writes all of it: "]
    : [`${put.size} of ${nodes.length} tokens put in from `, named(1 - side), replaced === put.size ? ", none of which " : `, ${replaced} of which `, named(side), replaced === put.size ? " would have written: " : " would not have written: "];
  $("said").replaceChildren(...words, make("b", {}, answer(end)), ". ", make("span", {class: "faint"}, `By itself ${label(model(0))}: ${answer(alone(0))}; ${label(model(1))}: ${answer(alone(1))}. The answer is ${r.answer}.`));
}
const visible = text => text.replace(/\n/g, "line break").trim() || (text ? "space" : "nothing");

function drawToken() {
  const r = here(), [leaf, switched] = mixture(), nodes = path(r, leaf), node = nodes[state.token], before = r.parent[node];
  const i = r.index.get(before), side = primary(), put = switched.includes(state.token);
  const own = s => r.own[s][before], text = n => quoted(piece(r, n));
  const title = make("h2", {}, text(node), ` token ${state.token + 1} of ${nodes.length}`);
  const who = make("p");
  if (!put) who.append("Written by ", named(side), ".");
  else who.append("Put in from ", named(1 - side), own(side) === node ? ", and the token that " : ". ", named(side), ...(own(side) === node ? [" would have written too."] : [" would have written ", text(own(side)), "."]));
  if (!put && own(1 - side) !== node) who.append(" ", named(1 - side), " would have written ", text(own(1 - side)), ".");
  const m = name => fixed(r.measured[name][i]);
  const facts = make("p", {class: "facts"},
    make("span", {}, make("b", {}, `JS ${m("js")}`), ` nats (full vocabulary ${m("js_full")})`),
    make("span", {}, "entropy ", named(0), ` ${m("entropy_base")}, `, named(1), ` ${m("entropy_tuned")} nats`));
  const cell = (p, bits, s) => {
    if (p === null) return make("td", {class: "p faint"}, `not in its first ${data.topK}`);
    return make("td", {class: "p"}, `${bits >> s & 1 ? "●" : "○"} ${p >= 0.0005 ? p.toFixed(3) : "< .001"}`,
      make("span", {class: "meter", style: `width:${(45 * p).toFixed(1)}%;background:var(--${ROLES[s]})`}));
  };
  const rows = r.candidates[i].map(([token, p, q, bits]) => make("tr", data.strings[token] === data.strings[r.name[node]] ? {class: "here"} : {},
    make("th", {scope: "row"}, quoted(data.strings[token]), data.strings[token] === data.strings[r.name[node]] ? " ◂ here" : ""), cell(p, bits, 0), cell(q, bits, 1)));
  const counted = [0, 1].map(s => r.nuclei[i][s] - r.candidates[i].filter(c => c[3] >> s & 1).length);
  const more = counted.map((n, s) => n > 0 ? ` ${label(model(s))}'s nucleus has ${n} more.` : "").join("");
  const table = make("table", {}, make("caption", {}, `Most probable next tokens; ● in the nucleus (top-p ${data.topP}) that tokens are drawn from, ○ outside.${more}`),
    make("thead", {}, make("tr", {}, make("th", {scope: "col"}, "token"), make("th", {scope: "col"}, named(0)), make("th", {scope: "col"}, named(1)))), make("tbody", {}, ...rows));
  const ways = [0, 1].map(s => {
    const way = going(r, s, before), end = r.end.get(way.at(-1));
    const words = end ? (end.eos ? `${end.answer || "no answer"}, ${end.right ? "right" : "wrong"}` : "cut off, wrong") : "";
    const going_ = make("div", {class: "going", style: `--from:var(--${ROLES[s]})`, "data-side": ROLES[s]});
    way.slice(0, SHOWN).forEach((n, k) => going_.append(make(k ? "span" : "b", isSpecial(r, n) ? {class: "special"} : {}, ...spaced(piece(r, n)))));
    if (way.length > SHOWN) going_.append(`… ${way.length - SHOWN} more tokens`);
    return [make("h3", {}, named(s), ` goes on alone: ${words}`), going_];
  });
  $("token").replaceChildren(title, who, facts, table, ...(own(0) === own(1) ? [make("p", {class: "faint"}, "Both models take the same token here.")] : []), ...ways.flat());
}

function drawNotes() {
  const step = js => make("span", {class: "step", style: `background-color:${shade(js)}`}, js === LN2 ? "0.69" : String(js));
  const from = `var(--${ROLES[1 - primary()]})`, [one, other] = [label(model(primary())), label(model(1 - primary()))];
  $("legend").replaceChildren(
    make("span", {}, "JS, nats: ", ...[0, 0.01, 0.1, 0.3, LN2].map(step)),
    make("span", {}, make("span", {class: "new", style: `--from:${from}`}, "put in"), `: ${one} would have written another token`),
    make("span", {}, make("span", {class: "put", style: `--from:${from}`}, "put in"), ", the same token"));
  const said = [
    `One model writes. Where the rule fires, the next token comes from the other model, and the first goes on from there. The text is the one that was recorded at each threshold of the study, never put together here.`,
    `JS is how far apart the two models' next-token distributions are (Jensen-Shannon divergence of what is sampled from, in nats: 0 the same, 0.69 nothing in common). Both models draw with the same noise, so that what ${one} would have written at a place is known.`,
    `Keys in the response: left and right go from token to token, up and down from one put-in token to the next, Home and End to the first and the last. The address of this page always says what it shows.`,
    `Chosen by rule: the first ${data.problems} problem${data.problems === 1 ? "" : "s"} of each benchmark, the first ${data.samples} response${data.samples === 1 ? "" : "s"} to each. The page opens at the first of them that the mixture turns from wrong to right. Accuracies are of the whole study; brackets are intervals that resample problems.`,
    `Where "${one} goes on alone" or "${other} goes on alone" is in no record, it was drawn when the page was made, with the study's models, sampling and noise: it is one draw, as every response is. Candidates were read then too.`,
    data.study.note,
  ];
  $("notes").replaceChildren(...said.map(text => make("p", {}, text)));
}

// Moving -----------------------------------------------------------------------------------------

const firstPut = () => {
  const r = here(), [leaf, switched] = mixture(), nodes = path(r, leaf);
  const found = switched.find(position => r.own[primary()][r.parent[nodes[position]]] !== nodes[position]);
  return found ?? switched[0] ?? 0;
};
function drawAll(focus) {
  drawControls();
  drawFinding();
  drawCurve();
  drawResponse(focus);
  drawToken();
  drawNotes();
  remember();
}
function moveTo(stop) {
  state.stop = Math.max(0, Math.min(stop, curve().stops.length - 1));
  if (!mixtureAt(state.stop)) settle();
  drawAll();
}
function choose(position, focus = true) {
  const tokens = $("response").children;
  const old = tokens[state.token];
  if (old) { old.tabIndex = -1; old.setAttribute("aria-selected", "false"); }
  state.token = Math.max(0, Math.min(position, tokens.length - 1));
  const token = tokens[state.token];
  token.tabIndex = 0;
  token.setAttribute("aria-selected", "true");
  if (focus) token.focus();
  drawToken();
  remember();
}
function change(update, t) {
  const before = t === undefined ? curve().stops[state.stop].t : t;
  update();
  settle(before);
  state.token = firstPut();
  drawAll();
}
$("pair").addEventListener("change", e => change(() => { state.pair = e.target.value; }));
$("way").addEventListener("change", e => change(() => { state.way = e.target.value; }));
$("rule").addEventListener("change", e => change(() => { state.rule = e.target.value; }));
$("problem").addEventListener("change", e => change(() => { [state.benchmark, state.problem] = JSON.parse(e.target.value); state.sample = 0; }));
$("sample").addEventListener("change", e => change(() => { state.sample = Number(e.target.value); }));
$("stop").addEventListener("input", e => moveTo(Number(e.target.value)));
$("controls").addEventListener("submit", e => e.preventDefault());
$("response").addEventListener("click", e => {
  const token = e.target.closest(".t");
  if (token) choose(Number(token.dataset.position));
});
$("response").addEventListener("keydown", e => {
  const put = mixture()[1], last = $("response").children.length - 1, at = state.token;
  const to = {
    ArrowRight: () => at + 1, ArrowLeft: () => at - 1, Home: () => 0, End: () => last,
    ArrowDown: () => put.find(p => p > at) ?? at, ArrowUp: () => put.findLast(p => p < at) ?? at,
  }[e.key];
  if (!to || e.ctrlKey || e.metaKey || e.altKey) return;
  e.preventDefault();
  choose(to());
});
addEventListener("hashchange", () => { restore(); drawAll(); });
new ResizeObserver(() => drawCurve()).observe($("accuracy"));

restore();
drawAll();
document.body.dataset.ready = "yes";
})();
