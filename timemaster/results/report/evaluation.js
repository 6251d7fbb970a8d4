// Evaluations: a row each with its interval drawn, controls with blanked images below; the confusion matrix of one.
"use strict";

const UNPARSED = "(unparsed)";

function drawEvaluation() {
  const section = byId("evaluation");
  section.append(el("h2", {}, "Evaluation"));
  if (!DATA.evaluations.length) {
    section.append(absent("No eval/step_<N>/metrics.json in this folder: the run has not been evaluated (EVAL=True with its script)."));
    return;
  }
  const matrix = el("div", { class: "matrix", "aria-live": "polite" });
  const rows = DATA.evaluations.flatMap((one, i) => evaluationRows(one, i));
  const head = ["", "n", "accuracy", "95 % interval", "macro F1", "unparsed", "format", "reward", "tokens"];
  const pick = (index) => {
    rows.forEach((row) => row.classList.toggle("chosen", row.dataset.index === String(index)));
    matrix.replaceChildren(confusion(DATA.evaluations[index]));
  };
  section.append(
    ...scrolling(el("table", { class: "evaluations" },
      el("thead", {}, el("tr", {}, head.map((name) => el("th", { scope: "col" }, name)))), el("tbody", {}, rows)), "Evaluations"),
    el("p", { class: "quiet" }, "Intervals are drawn from 0 to 1; the tick is the share of the largest class. A click on a row shows its matrix."),
    matrix);
  rows.forEach((row) => row.addEventListener("click", () => pick(Number(row.dataset.index))));
  pick(Math.max(DATA.evaluations.findLastIndex((one) => !one.blank_images), 0));
}

function evaluationRows(one, index) {
  const name = el("button", { type: "button", title: one.model },
    one.blank_images ? el("span", { class: "blank" }, "blanked images, ") : null,
    [moment(one), one.how, one.num_samples > 1 ? `${one.num_samples} samples` : null, one.rows && one.rows !== "test" ? `${one.rows} rows` : null].filter(Boolean).join(", "));
  const line = (label, own) => figures(el("span", { class: "source" }, label), { n: one.n, ...own }, index);
  return [
    figures(name, one, index),
    one.majority ? line("majority vote", one.majority) : null,
    Object.entries(one.pass_at_k || {}).map(([k, own]) => line(`pass@${k}`, { accuracy: own.value, accuracy_ci95: own.ci95 })),
    Object.entries(one.by_data_source || {}).map(([source, own]) => line(source, own)),
  ].flat().filter(Boolean);
}

const moment = (one) => (isNumber(one.step) ? (one.step ? `step ${count(one.step)}` : "before training") : one.name);

function figures(name, one, index) {
  const classless = one.per_class && !Object.keys(one.per_class).length; // nothing to parse
  const share = one.n ? ` (${((100 * one.unparsed) / one.n / (one.num_samples || 1)).toFixed(1)} %)` : "";
  return el("tr", { "data-index": index },
    el("th", { scope: "row" }, name), el("td", {}, count(one.n)), el("td", {}, el("b", {}, fixed(one.accuracy))),
    el("td", {}, whisker(one)), el("td", {}, fixed(one.macro_f1)),
    el("td", {}, isNumber(one.unparsed) && !classless ? `${count(one.unparsed)}${one.unparsed ? share : ""}` : "–"),
    el("td", {}, fixed(one.format_rate)), el("td", {}, fixed(one.reward_mean)), el("td", {}, fixed(one.response_tokens_mean, 1)));
}

// The interval on an axis from 0 to 1; a tick marks the share of the largest class, which needs no model.
function whisker(one) {
  if (!one.accuracy_ci95) return "–";
  const [low, high] = one.accuracy_ci95, width = 150;
  const sizes = Object.values(one.per_class || {}).map((own) => own.n);
  const largest = sizes.length ? Math.max(...sizes) / sizes.reduce((a, b) => a + b, 0) : null;
  return el("span", { class: "whisker" },
    svg("svg", { width, height: 16, viewBox: `0 0 ${width} 16` },
      svg("line", { class: "grid", x1: 0, x2: width, y1: 8, y2: 8 }),
      largest === null ? null : svg("line", { class: "chance", x1: width * largest, x2: width * largest, y1: 2, y2: 14 }, svg("title", {}, `largest class: ${fixed(largest)}`)),
      svg("line", { class: "interval", x1: width * low, x2: width * high, y1: 8, y2: 8 }),
      svg("circle", { cx: width * one.accuracy, cy: 8, r: 3.5 })),
    `${fixed(low)} to ${fixed(high)}`);
}

const label = (name) => el("div", { class: "label" }, name.split(/(?<=[_/-])/).map((piece) => [piece, el("wbr")]));

function confusion(one) {
  const truths = Object.keys(one.confusion || {});
  if (!truths.length) return absent("This evaluation has no classes, so there is no confusion matrix.");
  const said = Object.keys(one.confusion[truths[0]]);
  const row = (truth) => {
    const counts = said.map((name) => one.confusion[truth][name] || 0);
    const total = counts.reduce((a, b) => a + b, 0) || 1;
    const own = (one.per_class || {})[truth] || {};
    const cells = counts.map((value, i) => {
      const cell = el("td", { class: `cell${said[i] === truth ? " hit" : ""}${value / total > 0.55 ? " full" : ""}`, title: `${truth} read as ${said[i]}: ${((100 * value) / total).toFixed(1)} %` }, count(value));
      cell.style.setProperty("--share", value / total);
      return cell;
    });
    const read = truths.reduce((sum, other) => sum + (one.confusion[other][truth] || 0), 0);
    const known = [true, read, own.n, read || own.n]; // a share of nothing is no number
    const scores = [own.n, own.precision, own.recall, own.f1].map((value, i) => el("td", { class: "score" }, known[i] ? (i ? fixed(value) : short(value)) : "–"));
    return el("tr", {}, el("th", { scope: "row" }, label(truth)), cells, el("td", { class: "gap" }), scores);
  };
  const heads = [...said.map((name) => el("th", { scope: "col", class: name === UNPARSED ? "quiet" : "" }, label(name))), el("th", { class: "gap" }),
    ...["n", "precision", "recall", "F1"].map((name) => el("th", { scope: "col" }, name))];
  const title = [one.blank_images ? "blanked images" : null, moment(one), one.how, `accuracy ${fixed(one.accuracy)}`].filter(Boolean).join(", ");
  return el("div", {},
    el("h3", {}, `Confusion matrix: ${title}`, el("small", {}, "rows: truth, columns: answer; shaded by the share of the row, framed: right")),
    ...scrolling(el("table", { class: "confusion" }, el("thead", {}, el("tr", {}, el("th", {}), heads)), el("tbody", {}, truths.map(row))), "Confusion matrix"),
    el("p", { class: "quiet" }, (one.files || []).map((name) => tail(name)).join(", "), one.rows_left_out ? `; ${one.rows_left_out} rows left out` : ""));
}
