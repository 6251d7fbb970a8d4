// A line chart as SVG. All charts share one cursor: pointing at a step in one shows the values of that step in all.
"use strict";

const CHARTS = [];
const HEIGHT = 196;
const EDGE = { left: 46, right: 10, top: 22, bottom: 34 };
let smoothing = DATA.steps.length > 300 ? 0.9 : 0; // the curves of long runs are too noisy without it

// Exponential moving average, corrected for its start. weight 0 leaves the values as they are.
function smooth(values, weight) {
  let mean = 0, seen = 0;
  return values.map((value) => {
    if (!isNumber(value)) return null;
    mean = weight * mean + (1 - weight) * value;
    seen = weight * seen + (1 - weight);
    return mean / seen;
  });
}

// About `wanted` round numbers between low and high.
function ticks(low, high, wanted = 4) {
  const rough = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((factor) => power * factor >= rough * 0.999);
  const out = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) out.push(Number((k * step).toPrecision(12)));
  return out;
}

function decades(low, high) {
  const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
  const stride = Math.ceil((last - first) / 5) || 1;
  const out = [];
  for (let power = first; power <= last; power += stride) out.push(10 ** power);
  return out;
}

class Chart {
  // spec: title, note, y (the name of the axis), lines [{key, label}], log, unit (values lie in 0..1), zero (the axis starts
  // at 0), limit {value, label}
  constructor(spec) {
    this.spec = spec;
    this.lines = spec.lines.map((line, i) => ({ ...line, values: DATA.metrics[line.key], look: `c${i % 6} d${(i + Math.floor(i / 6)) % 6}` }));
    this.plot = svg("svg", { class: "plot", role: "img", "aria-label": `${spec.title}: ${spec.y} by step` });
    this.readouts = this.lines.map(() => el("b", {}));
    const legend = this.lines.map((line, i) =>
      el("span", { title: line.key }, svg("svg", { class: "sample", width: 26, height: 8 }, svg("line", { class: line.look, x1: 0, x2: 26, y1: 4, y2: 4 })), line.label, this.readouts[i]));
    this.node = el("figure", { class: "chart", tabindex: 0, onkeydown: (event) => this.key(event) },
      el("figcaption", {}, el("h3", {}, spec.title), spec.note ? el("small", {}, spec.note) : null, el("div", { class: "legend" }, legend)),
      this.plot);
    this.plot.addEventListener("pointermove", (event) => setCursor(this.indexAt(event)));
    this.plot.addEventListener("pointerleave", () => setCursor(null));
    this.plot.addEventListener("click", (event) => pickStep(DATA.steps[this.indexAt(event)]));
    new ResizeObserver(() => this.draw()).observe(this.node);
    CHARTS.push(this);
  }

  key(event) {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const last = DATA.steps.length - 1;
    if (move) setCursor(Math.min(Math.max((cursor === null ? last + (move < 0 ? 1 : 0) : cursor) + move, 0), last));
    else if (event.key === "Enter" && cursor !== null) pickStep(DATA.steps[cursor]);
    else return;
    event.preventDefault();
  }

  indexAt(event) {
    const x = event.clientX - this.plot.getBoundingClientRect().left;
    const [first, last] = [DATA.steps[0], DATA.steps[DATA.steps.length - 1]];
    const step = first + ((x - EDGE.left) / (this.width - EDGE.left - EDGE.right)) * (last - first);
    let best = 0;
    DATA.steps.forEach((one, i) => { if (Math.abs(one - step) < Math.abs(DATA.steps[best] - step)) best = i; });
    return best;
  }

  // The range of the axis. It contains the lines and the limit; for shares it is 0..1.
  range() {
    const positive = (value) => isNumber(value) && (!this.spec.log || value > 0);
    const all = this.lines.flatMap((line) => line.values).filter(positive);
    if (!all.length) return null;
    let low = all.reduce((a, b) => Math.min(a, b)), high = all.reduce((a, b) => Math.max(a, b));
    if (this.spec.limit) high = Math.max(high, this.spec.limit.value);
    if (this.spec.log) return [10 ** Math.floor(Math.log10(low)), 10 ** Math.ceil(Math.log10(high * 1.001))];
    if (this.spec.unit && low >= 0 && high <= 1) return [0, 1];
    if (this.spec.zero || (low >= 0 && low < 0.5 * high)) low = Math.min(0, low);
    const room = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
    return [low === 0 ? 0 : low - room, high + room];
  }

  draw() {
    this.width = this.node.clientWidth - 24;
    if (this.width < 60) return; // the chart is folded away
    const range = this.range();
    this.plot.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
    this.plot.setAttribute("height", HEIGHT);
    this.plot.replaceChildren();
    if (!range) {
      const why = this.spec.log ? "zero at every step" : "no finite value";
      this.plot.append(svg("text", { x: this.width / 2, y: HEIGHT / 2, "text-anchor": "middle" }, why));
      return this.show();
    }
    const [low, high] = range;
    const scale = this.spec.log ? Math.log10 : (value) => value;
    const [first, last] = [DATA.steps[0], DATA.steps[DATA.steps.length - 1]];
    const bottom = HEIGHT - EDGE.bottom;
    this.x = (step) => EDGE.left + (last > first ? (step - first) / (last - first) : 0.5) * (this.width - EDGE.left - EDGE.right);
    this.y = (value) => bottom - ((scale(value) - scale(low)) / (scale(high) - scale(low))) * (bottom - EDGE.top);
    this.axes(low, high, first, last);
    for (const line of this.lines) this.line(line);
    this.mark = svg("line", { class: "cursor", y1: EDGE.top, y2: bottom, visibility: "hidden" });
    this.dots = this.lines.map((line) => svg("circle", { class: line.look, r: 3, visibility: "hidden" }));
    this.plot.append(this.mark, ...this.dots);
    this.show();
  }

  axes(low, high, first, last) {
    const right = this.width - EDGE.right, bottom = HEIGHT - EDGE.bottom;
    for (const value of this.spec.log ? decades(low, high) : ticks(low, high)) {
      const text = this.spec.log ? value.toExponential(0) : short(value).replace(/(\.\d*?)0+(k|M|$)/, "$1$2").replace(/\.(k|M|$)/, "$1");
      this.plot.append(svg("line", { class: "grid", x1: EDGE.left, x2: right, y1: this.y(value), y2: this.y(value) }),
        svg("text", { x: EDGE.left - 6, y: this.y(value) + 4, "text-anchor": "end" }, text));
    }
    for (const step of ticks(first, last, this.width / 60).filter(Number.isInteger))
      this.plot.append(svg("text", { x: Math.min(this.x(step), this.width - 3.4 * count(step).length), y: bottom + 14, "text-anchor": "middle" }, count(step)));
    this.plot.append(svg("text", { class: "axis", x: 2, y: 12 }, this.spec.y + (this.spec.log ? ", log scale" : "")),
      svg("text", { class: "axis", x: (EDGE.left + right) / 2, y: HEIGHT - 5, "text-anchor": "middle" }, `${DATA.kind} step`));
    const limit = this.spec.limit;
    if (limit && limit.value <= high && limit.value >= low)
      this.plot.append(svg("line", { class: "limit", x1: EDGE.left, x2: right, y1: this.y(limit.value), y2: this.y(limit.value) }),
        svg("text", { class: "limit", x: right, y: this.y(limit.value) + 13, "text-anchor": "end" }, limit.label));
  }

  line(line) {
    const shown = (value) => isNumber(value) && (!this.spec.log || value > 0);
    const known = line.values.filter(shown).length;
    const sparse = known < DATA.steps.length / 2; // such as validation: points, joined across steps without a value
    const path = (values) => {
      let text = "", open = false;
      values.forEach((value, i) => {
        if (!shown(value)) { open = open && sparse; return; }
        text += `${open ? "L" : "M"}${this.x(DATA.steps[i]).toFixed(1)} ${this.y(value).toFixed(1)}`;
        open = true;
      });
      return text;
    };
    if (smoothing && !sparse) this.plot.append(svg("path", { class: `${line.look} raw`, d: path(line.values) }));
    this.plot.append(svg("path", { class: line.look, d: path(sparse ? line.values : smooth(line.values, smoothing)) }));
    if (known <= 40)
      line.values.forEach((value, i) => shown(value) && this.plot.append(
        svg("circle", { class: `${line.look} point`, cx: this.x(DATA.steps[i]), cy: this.y(value), r: known === 1 || sparse ? 3 : 1.8 })));
  }

  // Shows values in the legend: those at the cursor, or the last ones.
  show() {
    this.lines.forEach((line, i) => {
      const at = cursor === null ? line.values.findLastIndex(isNumber) : cursor;
      const value = line.values[at];
      this.readouts[i].textContent = short(value);
      if (!this.dots || !this.dots[i]) return;
      const seen = cursor !== null && isNumber(value) && (!this.spec.log || value > 0);
      this.dots[i].setAttribute("visibility", seen ? "visible" : "hidden");
      if (seen) { this.dots[i].setAttribute("cx", this.x(DATA.steps[at])); this.dots[i].setAttribute("cy", this.y(value)); }
    });
    if (!this.mark) return;
    this.mark.setAttribute("visibility", cursor === null ? "hidden" : "visible");
    if (cursor !== null) for (const end of ["x1", "x2"]) this.mark.setAttribute(end, this.x(DATA.steps[cursor]));
  }
}

let cursor = null; // an index into DATA.steps

function setCursor(index) {
  if (index === cursor) return;
  cursor = index;
  byId("cursor").textContent = index === null ? "last values" : `step ${count(DATA.steps[index])}`;
  for (const chart of CHARTS) chart.show();
}

function setSmoothing(weight) {
  smoothing = weight;
  for (const chart of CHARTS) chart.draw();
}
