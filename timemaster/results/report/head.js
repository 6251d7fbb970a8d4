// The top of the page: what ran, when, on what, and the most important figures.
"use strict";

function drawHead() {
  const config = DATA.config;
  const last = DATA.steps.length ? DATA.steps[DATA.steps.length - 1] : 0;
  const planned = config["trainer.total_training_steps"];
  const seconds = (DATA.metrics["seconds/step"] || []).reduce((sum, value) => sum + (value || 0), 0);
  const facts = [
    ["model", path(config["model.path"])],
    ["data", [config["data.recipes"], config["data.train_files"]].flat().filter(Boolean).map((name) => el("div", {}, path(name)))],
    ["steps", (DATA.steps.length || planned) && `${count(last)}${planned > last ? ` of ${count(planned)}` : ""}${seconds ? ` in ${duration(seconds)}` : ""}`],
    ["last written", DATA.last_write],
  ];
  fill(byId("head"), {}, [
    el("div", { class: "kind" }, `${DATA.kind} run`),
    el("h1", {}, DATA.experiment, el("span", {}, DATA.project)),
    el("dl", { class: "facts" }, facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value || "–")))),
    tiles(),
    DATA.notes.length ? el("ul", { class: "notes" }, DATA.notes.map((note) => el("li", {}, note))) : null,
    settings(),
  ]);
}

const path = (name) => (name ? el("span", { title: name }, tail(name)) : null);

function tiles() {
  const rows = (one) => one.rows || "test";
  const ofTest = DATA.evaluations.filter((one) => rows(one) === "test");
  const seeing = (ofTest.length ? ofTest : DATA.evaluations).filter((one) => !one.blank_images);
  const greedy = seeing.filter((one) => one.how === "greedy");
  const trained = greedy.length ? greedy : seeing;
  const test = trained[trained.length - 1];
  const isControl = (one) => one.blank_images && one.model === test.model && rows(one) === rows(test);
  const blank = test && DATA.evaluations.find(isControl);
  const known = (name) => (DATA.metrics[name] || []).filter(isNumber);
  const reward = known("reward/mean");
  const difference = known("rollout/logprob_diff_mean");
  const loss = known("sft/loss");
  const found = [
    test && headline(test) && [[`${rows(test)} ${headline(test).heading}`, moment(test), test.how].filter(Boolean).join(", "), worthOf(test), interval(test)],
    test && trained.length > 1 && headline(trained[0]) && [moment(trained[0]), worthOf(trained[0]), interval(trained[0])],
    blank && headline(blank) && ["blanked images", worthOf(blank), interval(blank)],
    reward.length && [["reward", DATA.sampling.training].filter(Boolean).join(", "), fixed(reward[reward.length - 1]), `from ${fixed(reward[0])}`],
    loss.length && ["loss", fixed(loss[loss.length - 1]), `from ${fixed(loss[0])}`],
    difference.length && ["log-prob difference", short(Math.max(...difference)), "largest mean of a step"],
  ].filter(Boolean);
  return found.length
    ? el("div", { class: "tiles" }, found.map(([name, value, more]) => el("div", {}, el("span", {}, name), el("b", {}, value), el("small", {}, more))))
    : null;
}

function interval(figures) {
  const { ci95, higher_is_better: higher } = headline(figures);
  return `${ci95 ? `95 %: ${fixed(ci95[0])} to ${fixed(ci95[1])}` : "no interval"}${higher ? "" : ", lower is better"}`;
}

function settings() {
  if (!DATA.config_text) return absent("No config.yaml in this folder: the settings of the run are not known.");
  const command = () => [`timemaster ${DATA.kind.toLowerCase()}`, ...DATA.given].join(" \\\n    ");
  return el("div", { class: "settings" },
    DATA.given ? el("details", {}, el("summary", {}, `Command: the ${DATA.given.length} settings that were given`), el("pre", {}, command()))
      : absent("No overrides.yaml in this folder: which settings were given is not known."),
    el("details", {}, el("summary", {}, "config.yaml: every setting"), el("pre", {}, DATA.config_text)));
}
