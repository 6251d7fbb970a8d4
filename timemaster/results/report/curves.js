// Which curves a run has, in which order, and which it lacks. Further metrics get a chart each, folded away.
"use strict";

const has = (key) => (DATA.metrics[key] || []).some(isNumber);
const lines = (keys, label = (key) => key.split("/").pop().replace(/_/g, " ")) => keys.filter(has).map((key) => ({ key, label: label(key) }));
const named = (pattern) => Object.keys(DATA.metrics).filter((key) => pattern.test(key));
const isReal = (name) => DATA.numbers.some((one) => one.name === name && !one.is_share); // not between 0 and 1
const COUNTS = ["reward/errors", "reward/unknown", "reward/zero_spread_groups"];

function mainCharts() {
  const parts = named(/^reward\/[^@]+$/).filter((key) => key !== "reward/mean" && !COUNTS.includes(key));
  const limit = DATA.config["rollout.limit_logprob_diff"];
  const { training, validation } = DATA.sampling; // how the answers behind a metric were sampled
  return [
    { title: "Reward", note: training, y: "mean", lines: lines(["reward/mean", ...parts], (key) => (key === "reward/mean" ? "reward" : key.split("/").pop())), unit: true },
    { title: "Loss", y: "nats a token", lines: lines(["sft/loss", "val/loss"], (key) => (key === "val/loss" ? "validation" : "training")) },
    { title: "Validation", note: validation, y: "mean", lines: lines([`val/${HEADLINE.name}`, ...named(/^val\/[^@]+$/).filter((key) => !key.endsWith(HEADLINE.name) && !/loss$|tokens/.test(key))].filter((key) => !isReal(key.slice(4)))), unit: true },
    ...DATA.numbers.filter((one) => !one.is_share).map((one) => ({ title: `${one.heading[0].toUpperCase()}${one.heading.slice(1)}`, note: one.higher_is_better ? null : "lower is better", y: "mean",
      lines: lines([`answer/${one.name}`, `val/${one.name}`], (key) => (key.startsWith("val/") ? "validation" : "training")) })),
    ...sourceCharts(training, validation),
    { title: "Response length", note: training, y: "tokens", lines: lines(["response/tokens_mean", "response/tokens_max"], (key) => key.split("_").pop()), zero: true },
    { title: "Without signal", note: training, y: "share", unit: true,
      lines: lines(["response/cut_off", "reward/zero_spread_groups"], (key) => (key.endsWith("off") ? "answers cut off" : "groups all worth the same")) },
    { title: "Entropy", y: "nats a token", lines: lines(["actor/entropy", "sft/entropy"]) },
    { title: "KL to the reference", y: "nats a token", lines: lines(["actor/kl"]) },
    { title: "Log-prob difference", note: "trainer to engine, same tokens", y: "nats", log: true, lines: lines(["rollout/logprob_diff_mean", "rollout/logprob_diff_max"], (key) => key.split("_").pop()),
      limit: limit > 0 ? { value: limit, label: "limit of the mean" } : null },
    { title: "Gradient norm", y: "norm before clipping", lines: lines(["actor/grad_norm", "sft/grad_norm"]), zero: true },
    { title: "Throughput", y: "tokens a second", lines: lines(["throughput/tokens_per_second"]), zero: true },
    { title: "Seconds a step", y: "seconds", lines: lines(named(/^seconds\//)), zero: true },
  ].filter((spec) => spec.lines.length);
}

// With several data sources: a chart for each metric that is logged by source, with one line per source.
function sourceCharts(training, validation) {
  const bases = [...new Set(named(/@/).map((key) => key.split("@")[0]))].filter((base) => /^(reward|val)\//.test(base) && !COUNTS.includes(base));
  const order = (base) => [`val/${HEADLINE.name}`, "reward/mean", `reward/${HEADLINE.name}`].indexOf(base) >>> 0;
  return bases.sort((a, b) => order(a) - order(b)).map((base) => ({
    title: `${base[0].toUpperCase()}${base.slice(1).replace("/", " ")} by data source`, note: base.startsWith("val/") ? validation : training,
    y: base.split("/").pop().replace(/_/g, " "), unit: !isReal(base.split("/").pop()), main: order(base) < 3,
    lines: lines(named(/@/).filter((key) => key.startsWith(`${base}@`)), (key) => key.slice(base.length + 1)),
  }));
}

function otherCharts(drawn) {
  const seen = new Set(drawn.flatMap((spec) => spec.lines.map((line) => line.key)));
  const own = [
    { title: "Clipped tokens", y: "share", lines: lines(["actor/clip_fraction_low", "actor/clip_fraction_high"], (key) => key.split("_").pop()) },
    { title: "Rewards that failed", y: "count", lines: lines(["reward/errors", "reward/unknown"]), zero: true },
  ].filter((spec) => spec.lines.length);
  own.forEach((spec) => spec.lines.forEach((line) => seen.add(line.key)));
  const rest = Object.keys(DATA.metrics).filter((key) => !seen.has(key) && has(key));
  return [...own, ...rest.map((key) => ({ title: key, y: key.split("/").pop().replace(/_/g, " "), lines: lines([key]) }))];
}

function missing() {
  const expected = DATA.kind === "SFT"
    ? [["loss", "sft/loss"], ["validation loss", "val/loss"]]
    : [["reward", "reward/mean"], [`validation ${HEADLINE.heading} (trainer.test_freq)`, `val/${HEADLINE.name}`], ["KL (actor.use_kl_loss)", "actor/kl"],
      ["entropy", "actor/entropy"], ["log-prob difference", "rollout/logprob_diff_mean"], ["gradient norm", "actor/grad_norm"],
      ["response length", "response/tokens_mean"], ["throughput", "throughput/tokens_per_second"]];
  const names = expected.filter(([, key]) => !has(key)).map(([name]) => name);
  return names.length ? absent(`Not recorded in this run: ${names.join(", ")}.`) : null;
}

function drawCurves() {
  const section = byId("curves");
  if (!DATA.steps.length) {
    section.append(el("h2", {}, "Curves"), absent("No metrics.jsonl with steps in this folder: there are no curves."));
    return;
  }
  const all = mainCharts();
  const front = all.filter((spec) => spec.main !== false);
  const other = [...all.filter((spec) => spec.main === false), ...otherCharts(all)];
  const shown = () => (smoothing ? smoothing.toFixed(2) : "off");
  const value = el("output", {}, shown());
  const slider = el("input", { type: "range", id: "smoothing", min: 0, max: 0.98, step: 0.02, value: smoothing,
    oninput: (event) => { setSmoothing(Number(event.target.value)); value.textContent = shown(); } });
  fill(section, {}, [
    el("div", { class: "bar" }, el("h2", {}, "Curves"), el("span", { id: "cursor", class: "quiet" }, "last values"),
      el("label", { class: "right" }, "smoothing", slider, value)),
    el("div", { class: "charts" }, front.map((spec) => new Chart(spec).node)),
    missing(),
    other.length ? el("details", { class: "more" }, el("summary", {}, `${other.length} more curves`), el("div", { class: "charts" }, other.map((spec) => new Chart(spec).node))) : null,
  ]);
  if (DATA.rollouts.length) section.querySelector(".bar").append(el("span", { class: "quiet hint" }, "click a step to read its rollouts"));
}
