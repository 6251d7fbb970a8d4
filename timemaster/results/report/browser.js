// The rollouts: filters above, a list that draws only the rows in view, one rollout in full beside it.
"use strict";

const ROW = 58; // pixels, as in page.css
const OUTCOMES = ["right", "wrong", "measured", "unparsed", "unscored"];
const isPresent = (outcome) => DATA.rollouts.some((row) => row.outcome === outcome);
const MAX_TRUTHS = 100; // when answers are measured and there are more truths, there is no menu of truths
const ORDERS = {
  "order of training": null,
  "highest advantage": (a, b) => (b.advantage ?? -Infinity) - (a.advantage ?? -Infinity),
  "lowest advantage": (a, b) => (a.advantage ?? Infinity) - (b.advantage ?? Infinity),
  "longest first": (a, b) => (b.tokens || 0) - (a.tokens || 0),
};
if (isPresent("measured")) {
  const first = (row) => Object.values(row.numbers)[0];
  ORDERS[`highest ${HEADLINE.name}`] = (a, b) => (first(b) ?? -Infinity) - (first(a) ?? -Infinity);
  ORDERS[`lowest ${HEADLINE.name}`] = (a, b) => (first(a) ?? Infinity) - (first(b) ?? Infinity);
}
const filter = { outcomes: new Set(), truth: "", source: "", from: null, to: null, search: "", order: "order of training" };
const ui = {};
let shown = [], current = null;

function matches(row, skip) {
  return (skip === "outcome" || !filter.outcomes.size || filter.outcomes.has(row.outcome))
    && (!filter.truth || row.truth === filter.truth) && (!filter.source || row.source === filter.source)
    && (skip === "steps" || ((filter.from === null || row.step >= filter.from) && (filter.to === null || row.step <= filter.to)))
    && (!filter.search || row.haystack.includes(filter.search));
}

function apply() {
  shown = DATA.rollouts.filter((row) => matches(row));
  if (ORDERS[filter.order]) shown.sort(ORDERS[filter.order]);
  const by = Object.fromEntries(OUTCOMES.map((name) => [name, 0]));
  for (const row of DATA.rollouts) if (matches(row, "outcome")) by[row.outcome]++;
  for (const name of OUTCOMES) {
    ui[name].lastChild.textContent = count(by[name]);
    ui[name].setAttribute("aria-pressed", filter.outcomes.has(name));
  }
  ui.status.textContent = `${count(shown.length)} of ${count(DATA.rollouts.length)} rollouts`;
  ui.from.value = filter.from ?? "";
  ui.to.value = filter.to ?? "";
  ui.space.style.height = `${shown.length * ROW}px`;
  drawTimeline();
  select(shown.includes(current) ? current : shown[0] || null);
}

function select(row) {
  current = row;
  const at = shown.indexOf(row);
  if (row) ui.detail.replaceChildren(...drawRollout(row, filter.search, choose).filter(Boolean));
  else ui.detail.replaceChildren(absent("No rollout matches these filters."));
  ui.detail.scrollTop = 0;
  ui.place.textContent = row && at >= 0 ? `${count(at + 1)} of ${count(shown.length)}` : "";
  if (at >= 0) {
    const top = at * ROW, height = ui.list.clientHeight;
    if (top < ui.list.scrollTop) ui.list.scrollTop = top;
    else if (top + ROW > ui.list.scrollTop + height) ui.list.scrollTop = top + ROW - height;
  }
  drawList();
}

// Called by a chip. A rollout that the filters hide is still shown, but has no place in the list.
const choose = (row) => select(row);

function move(by) {
  if (shown.length) select(shown[Math.min(Math.max(shown.indexOf(current) + by, 0), shown.length - 1)]);
}

function drawList() {
  const first = Math.max(Math.floor(ui.list.scrollTop / ROW) - 3, 0);
  const last = Math.min(Math.ceil((ui.list.scrollTop + ui.list.clientHeight) / ROW) + 3, shown.length);
  const rows = [];
  for (let i = first; i < last; i++) rows.push(listRow(shown[i], i));
  ui.space.replaceChildren(...rows);
  ui.list.setAttribute("aria-activedescendant", shown.includes(current) ? "row-current" : "");
}

function listRow(row, i) {
  const image = row.media.map((name) => DATA.images[name]).find(Boolean);
  const node = el("div", { class: `row ${row.outcome}`, role: "option", "aria-selected": row === current ? "true" : "false", "aria-posinset": i + 1,
    "aria-setsize": shown.length, id: row === current ? "row-current" : null, onclick: () => select(row) },
    image ? el("img", { src: image.src, alt: "", loading: "lazy" }) : null,
    el("div", {},
      el("div", { class: "top" }, el("span", { class: "mark" }, MARKS[row.outcome]), el("b", {}, row.truth || "–"),
        (row.outcome === "wrong" || row.outcome === "measured") && row.said ? el("span", { class: "said" }, `→ ${row.said}`) : null,
        row.outcome === "measured" ? el("span", { class: "quiet" }, measured(row)) : null,
        el("span", { class: "right" }, isNumber(row.advantage) ? signed(row.advantage) : short(row.score))),
      el("div", { class: "snippet" }, el("span", {}, `step ${row.step}`), row.text.slice(0, 120))));
  node.style.top = `${i * ROW}px`;
  return node;
}

// The outcomes by step, as a timeline of the training. A click or a drag chooses steps.
function drawTimeline() {
  const width = ui.timeline.clientWidth, height = 46;
  const steps = ui.steps, bins = Math.min(steps.length, Math.max(Math.floor(width / 5), 1));
  const where = new Map(steps.map((step, i) => [step, Math.floor((i * bins) / steps.length)]));
  const share = new Map(); // the weight of an answer: 1 / number of steps in its bar
  for (const bin of where.values()) share.set(bin, 1 / (1 / (share.get(bin) || Infinity) + 1));
  const counts = Array.from({ length: bins }, () => Object.fromEntries(OUTCOMES.map((name) => [name, 0])));
  for (const row of DATA.rollouts) if (matches(row, "steps")) counts[where.get(row.step)][row.outcome] += share.get(where.get(row.step));
  const most = Math.max(1e-9, ...counts.map((bin) => OUTCOMES.reduce((sum, name) => sum + bin[name], 0)));
  const chosen = (bin) => steps.some((step) => where.get(step) === bin && (filter.from === null || step >= filter.from) && (filter.to === null || step <= filter.to));
  const bars = counts.flatMap((bin, i) => {
    let y = height;
    const faded = chosen(i) ? "" : " faded";
    return OUTCOMES.filter((name) => bin[name]).map((name) => {
      const tall = (bin[name] / most) * height;
      y -= tall;
      return svg("rect", { class: name + faded, x: (i * width) / bins, y, width: Math.max(width / bins - 1, 0.5), height: tall },
        svg("title", {}, `${name}: ${((100 * bin[name]) / OUTCOMES.reduce((sum, one) => sum + bin[one], 0)).toFixed(0)} %`));
    });
  });
  ui.timeline.replaceChildren(svg("svg", { viewBox: `0 0 ${width} ${height}`, width: "100%", height, preserveAspectRatio: "none" }, bars));
}

function brush() {
  const stepAt = (event) => {
    const box = ui.timeline.getBoundingClientRect();
    const share = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 0.9999);
    return ui.steps[Math.floor(share * ui.steps.length)];
  };
  let start = null;
  ui.timeline.addEventListener("pointerdown", (event) => { start = stepAt(event); ui.timeline.setPointerCapture(event.pointerId); setSteps(start, start); });
  ui.timeline.addEventListener("pointermove", (event) => { if (start !== null) setSteps(Math.min(start, stepAt(event)), Math.max(start, stepAt(event))); });
  ui.timeline.addEventListener("pointerup", () => { start = null; });
}

function setSteps(from, to) {
  if (filter.from === from && filter.to === to) return;
  Object.assign(filter, { from, to });
  apply();
}

// Called by a curve: shows the rollouts of that step, or of the nearest step that was logged.
function pickStep(step) {
  if (!DATA.rollouts.length) return;
  const nearest = ui.steps.reduce((best, one) => (Math.abs(one - step) < Math.abs(best - step) ? one : best));
  setSteps(nearest, nearest);
  byId("rollouts").scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
}

function options(values, all) {
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) || 0) + 1);
  return [el("option", { value: "" }, all), ...[...counts.keys()].sort().map((value) => el("option", { value }, `${value} (${count(counts.get(value))})`))];
}

function toolbar() {
  const number = (name) => el("input", { type: "number", id: name, placeholder: name === "from" ? ui.steps[0] : ui.steps[ui.steps.length - 1], "aria-label": `${name} step`,
    oninput: (event) => { filter[name] = event.target.value === "" ? null : Number(event.target.value); apply(); } });
  const choice = (name, items) => el("select", { id: name, "aria-label": name, onchange: (event) => { filter[name] = event.target.value; apply(); } }, items);
  for (const name of OUTCOMES) ui[name] = el("button", { type: "button", class: `toggle ${name}`, id: `only-${name}`, onclick: () => {
    if (!filter.outcomes.delete(name)) filter.outcomes.add(name);
    apply();
  } }, `${MARKS[name]} ${name} `, el("span", {}, ""));
  ui.from = number("from");
  ui.to = number("to");
  ui.search = el("input", { type: "search", id: "search", placeholder: "search answers and ids", "aria-label": "search",
    oninput: (event) => { filter.search = event.target.value.toLowerCase(); apply(); } });
  const ofChoices = ["right", "wrong", "unparsed"]; // shown together, even if one of them does not occur
  const used = OUTCOMES.filter((name) => isPresent(name) || (ofChoices.includes(name) && !isPresent("measured")));
  const truths = new Set(DATA.rollouts.map((row) => row.truth));
  const sources = new Set(DATA.rollouts.map((row) => row.source));
  return el("div", { class: "toolbar" },
    el("div", { class: "toggles" }, used.map((name) => ui[name])),
    isPresent("measured") && truths.size > MAX_TRUTHS ? null : choice("truth", options(DATA.rollouts.map((row) => row.truth), isPresent("measured") ? "every truth" : "every class")),
    sources.size > 1 ? choice("source", options(DATA.rollouts.map((row) => row.source), "every data source")) : null,
    el("span", { class: "range" }, "steps", ui.from, "to", ui.to),
    ui.search, choice("order", Object.keys(ORDERS).map((name) => el("option", { value: name }, name))),
    el("button", { type: "button", id: "clear", onclick: clear }, "clear"));
}

function clear() {
  Object.assign(filter, { outcomes: new Set(), truth: "", source: "", from: null, to: null, search: "", order: "order of training" });
  for (const node of byId("rollouts").querySelectorAll("select, input")) node.value = node.id === "order" ? filter.order : "";
  apply();
}

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches?.("input, select, textarea")) { // `document` has no method `matches`
    if (event.key !== "Escape") return;
    event.target.blur();
    event.preventDefault(); // otherwise the browser empties the field and the filter does not notice
    return;
  }
  const page = Math.max(Math.floor(ui.list.clientHeight / ROW) - 1, 1);
  const anywhere = { j: 1, k: -1 };
  const inList = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -shown.length, End: shown.length };
  const by = anywhere[event.key] ?? (event.target === ui.list ? inList[event.key] : undefined);
  if (by !== undefined) move(by);
  else if (event.key === "/") ui.search.focus();
  else return;
  event.preventDefault();
}

function drawBrowser() {
  const section = byId("rollouts");
  if (!DATA.rollouts.length) {
    section.append(el("h2", {}, "Rollouts"), absent("No rollouts/step_<N>.jsonl in this folder: no answers were logged (trainer.rollouts_to_log)."));
    return;
  }
  for (const row of DATA.rollouts) row.haystack = `${row.text}\n${row.id}`.toLowerCase();
  ui.steps = [...new Set(DATA.rollouts.map((row) => row.step))];
  ui.status = el("span", { id: "status", class: "quiet", "aria-live": "polite" });
  ui.place = el("span", { id: "place", class: "quiet" });
  ui.timeline = el("div", { id: "timeline" });
  ui.space = el("div", { class: "space" });
  let waiting = false;
  ui.list = el("div", { id: "list", role: "listbox", tabindex: 0, "aria-label": "rollouts", onscroll: () => {
    if (!waiting) requestAnimationFrame(() => { waiting = false; drawList(); });
    waiting = true;
  } }, ui.space);
  ui.detail = el("article", { id: "detail" });
  const drawn = OUTCOMES.filter(isPresent);
  const hint = ["j", "k"].map((key) => el("kbd", {}, key));
  section.append(
    el("div", { class: "bar" }, el("h2", {}, "Rollouts"), ui.status, DATA.sampling.training ? el("span", { class: "quiet" }, DATA.sampling.training) : null, el("span", { class: "quiet hint" }, hint, " next, previous ", el("kbd", {}, "/"), " search, ", el("kbd", {}, "esc"), " leave the field"),
      el("span", { class: "right" }, ui.place)),
    toolbar(), ui.timeline, el("div", { class: "ends quiet" }, ["step " + count(ui.steps[0]), `answers by step, from below: ${drawn.join(", ")}; drag to choose steps`, "step " + count(ui.steps[ui.steps.length - 1])].map((text) => el("span", {}, text))), el("div", { class: "browser" }, ui.list, ui.detail));
  document.addEventListener("keydown", keys);
  new ResizeObserver(() => { drawTimeline(); drawList(); }).observe(ui.list);
  brush();
  apply();
}
