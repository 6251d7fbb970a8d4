// Evaluations: a row for each with its interval, controls with blanked images below; and the confusion matrix or
// the distribution of the chosen one.
"use strict";

const UNPARSED = "(unparsed)";
const FURTHER = DATA.numbers.slice(1); // columns beside the headline
const HAS_F1 = DATA.evaluations.some((one) => "macro_f1" in one);
const HAS_MATRIX = DATA.evaluations.some((one) => "confusion" in one);

function drawEvaluation() {
  const section = byId("evaluation");
  section.append(el("h2", {}, "Evaluation"));
  if (!DATA.evaluations.length) {
    section.append(absent("No eval/step_<N>/metrics.json in this folder: the run has not been evaluated (EVAL=True with its script)."));
    return;
  }
  const matrix = el("div", { class: "matrix", "aria-live": "polite" });
  const rows = DATA.evaluations.flatMap((one, i) => evaluationRows(one, i));
  const head = ["", "n", HEADLINE.heading, "95 % interval", ...FURTHER.map((one) => one.heading), ...(HAS_F1 ? ["macro F1"] : []), "unparsed", "format", "reward", "tokens"];
  const pick = (index) => {
    rows.forEach((row) => row.classList.toggle("chosen", row.dataset.index === String(index)));
    matrix.replaceChildren(picture(DATA.evaluations[index]));
  };
  section.append(
    ...scrolling(el("table", { class: "evaluations" },
      el("thead", {}, el("tr", {}, head.map((name) => el("th", { scope: "col" }, name)))), el("tbody", {}, rows)), "Evaluations"),
    el("p", { class: "quiet" }, [axisNote(), "A click on a row shows its", HAS_MATRIX ? "matrix." : "distribution."].join(" ")),
    matrix);
  rows.forEach((row) => row.addEventListener("click", () => pick(Number(row.dataset.index))));
  pick(Math.max(DATA.evaluations.findLastIndex((one) => !one.blank_images), 0));
}

function evaluationRows(one, index) {
  const name = el("button", { type: "button", title: one.model },
    one.blank_images ? el("span", { class: "blank" }, "blanked images, ") : null,
    [moment(one), one.how, one.num_samples > 1 ? `${one.num_samples} samples` : null, one.rows && one.rows !== "test" ? `${one.rows} rows` : null].filter(Boolean).join(", "));
  const line = (name, own) => figures(el("span", { class: "source" }, name), { n: one.n, ...own }, index);
  return [
    figures(name, one, index),
    one.majority ? line("majority vote", one.majority) : null,
    Object.entries(one.pass_at_k || {}).map(([k, own]) => line(`pass@${k}`, own)),
    Object.entries(one.by_data_source || {}).map(([source, own]) => line(source, own)),
  ].flat().filter(Boolean);
}

const moment = (one) => (isNumber(one.step) ? (one.step ? `step ${count(one.step)}` : "before training") : one.name);

function figures(name, one, index) {
  const classless = one.per_class && !Object.keys(one.per_class).length; // nothing to parse
  const share = one.n ? ` (${((100 * one.unparsed) / one.n / (one.num_samples || 1)).toFixed(1)} %)` : "";
  const mean = (number) => fixed(one.numbers.find((own) => own.name === number.name)?.value);
  const isOther = headline(one) && headline(one).name !== HEADLINE.name; // a data source of another kind
  return el("tr", { "data-index": index },
    el("th", { scope: "row" }, name), el("td", {}, count(one.n)),
    el("td", {}, el("b", {}, worthOf(one)), isOther ? el("small", {}, headline(one).heading) : null),
    el("td", {}, whisker(one)), FURTHER.map((number) => el("td", {}, mean(number))), HAS_F1 ? el("td", {}, fixed(one.macro_f1)) : null,
    el("td", {}, isNumber(one.unparsed) && !classless ? `${count(one.unparsed)}${one.unparsed ? share : ""}` : "–"),
    el("td", {}, fixed(one.format_rate)), el("td", {}, fixed(one.reward_mean)), el("td", {}, fixed(one.response_tokens_mean, 1)));
}

// The interval on the axis of its number: from 0 to 1 for shares, where a tick marks the share of the largest class,
// which needs no model.
function whisker(one) {
  const number = headline(one);
  if (!number?.ci95) return "–";
  const [low, high] = number.ci95, width = 150, [from, to] = axisOf(number);
  const at = (value) => (width * (value - from)) / (to - from);
  const sizes = Object.values(one.per_class || {}).map((own) => own.n);
  const largest = sizes.length ? Math.max(...sizes) / sizes.reduce((a, b) => a + b, 0) : null;
  return el("span", { class: "whisker" },
    svg("svg", { width, height: 16, viewBox: `0 0 ${width} 16` },
      svg("line", { class: "grid", x1: 0, x2: width, y1: 8, y2: 8 }),
      largest === null ? null : svg("line", { class: "chance", x1: width * largest, x2: width * largest, y1: 2, y2: 14 }, svg("title", {}, `largest class: ${fixed(largest)}`)),
      svg("line", { class: "interval", x1: at(low), x2: at(high), y1: 8, y2: 8 }),
      svg("circle", { cx: at(number.value), cy: 8, r: 3.5 })),
    `${fixed(low)} to ${fixed(high)}`);
}

// The ends of the axis: 0 and 1 for shares. For other numbers, the smallest and the largest end of an interval; 0 is
// always included.
function axisOf(number) {
  if (number.is_share) return [0, 1];
  const all = DATA.evaluations.flatMap((one) => [one, ...Object.values(one.by_data_source)]).map(headline);
  const ends = all.filter((own) => own?.name === number.name && own.ci95).flatMap((own) => own.ci95);
  const [low, high] = [Math.min(0, ...ends), Math.max(0, ...ends)];
  return low === high ? [low, low + 1] : [low, high];
}

function axisNote() {
  const [from, to] = axisOf(HEADLINE);
  return `Intervals are drawn from ${short(from)} to ${short(to)}${HAS_MATRIX ? "; the tick is the share of the largest class" : ""}.`;
}

const label = (name) => el("div", { class: "label" }, name.split(/(?<=[_/-])/).map((piece) => [piece, el("wbr")]));

// What an evaluation shows of its answers: the confusion matrix, or the distribution of its number.
function picture(one) {
  if ("confusion" in one) return confusion(one);
  if (!one.picture) return absent("This folder has no picture of this evaluation.");
  return el("div", {}, el("h3", {}, `Distribution: ${describe(one)}`),
    el("img", { src: one.picture, alt: `distribution of ${headline(one)?.heading}` }), filesOf(one));
}

const describe = (one) => [one.blank_images ? "blanked images" : null, moment(one), one.how, headline(one) && `${headline(one).heading} ${worthOf(one)}`].filter(Boolean).join(", ");
const filesOf = (one) => el("p", { class: "quiet" }, (one.files || []).map((name) => tail(name)).join(", "), one.rows_left_out ? `; ${one.rows_left_out} rows left out` : "");

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
    const known = [true, read, own.n, read || own.n]; // where this is 0, the score does not exist
    const scores = [own.n, own.precision, own.recall, own.f1].map((value, i) => el("td", { class: "score" }, known[i] ? (i ? fixed(value) : short(value)) : "–"));
    return el("tr", {}, el("th", { scope: "row" }, label(truth)), cells, el("td", { class: "gap" }), scores);
  };
  const heads = [...said.map((name) => el("th", { scope: "col", class: name === UNPARSED ? "quiet" : "" }, label(name))), el("th", { class: "gap" }),
    ...["n", "precision", "recall", "F1"].map((name) => el("th", { scope: "col" }, name))];
  return el("div", {},
    el("h3", {}, `Confusion matrix: ${describe(one)}`, el("small", {}, "rows: truth, columns: answer; shaded by the share of the row, framed: right")),
    ...scrolling(el("table", { class: "confusion" }, el("thead", {}, el("tr", {}, el("th", {}), heads)), el("tbody", {}, truths.map(row))), "Confusion matrix"),
    filesOf(one));
}
