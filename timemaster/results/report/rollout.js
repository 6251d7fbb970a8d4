// One rollout in full: the plot, the question, the answer or the turns, the parts of the reward, and the other answers
// to the prompt.
"use strict";

const MARKS = { right: "✓", wrong: "✗", unparsed: "?", measured: "•", unscored: "–" };
const ENDS = { // why a rollout ended, if not at the end of its answer
  length: "cut off at the length limit", done: "ended by the environment", max_turns: "ended at the limit of turns",
  max_images: "ended at the limit of images", no_room: "no room for another turn", failure: "the environment failed",
};
const TAGS = /(<\/?[a-z]\w*>)/i; // whatever tags the answers use

// Shows control characters as visible symbols, and marks tags and the searched text.
function answerText(text, search) {
  const visible = text.replace(/[\u0000-\u0008\u000b-\u001f]/g, (char) => String.fromCharCode(0x2400 + char.charCodeAt(0)));
  return visible.split(TAGS).map((piece) => (TAGS.test(piece) ? el("span", { class: "tag" }, piece) : found(piece, search)));
}

function found(text, search) {
  if (!search) return text;
  const out = [], lower = text.toLowerCase();
  let from = 0;
  for (let at = lower.indexOf(search); at >= 0; at = lower.indexOf(search, from)) {
    out.push(text.slice(from, at), el("mark", {}, text.slice(at, at + search.length)));
    from = at + search.length;
  }
  return [...out, text.slice(from)];
}

const badge = (row) => el("span", { class: `badge ${row.outcome}` }, `${MARKS[row.outcome]} ${row.outcome === "measured" ? measured(row) : row.outcome}`);

// The number that an answer is judged by. Example: "error 0.07"
function measured(row) {
  const [name, value] = Object.entries(row.numbers)[0];
  return `${name} ${short(value)}`;
}

function plots(row) {
  if (!row.media.length) return absent("No plot is recorded with this rollout.");
  return row.prompt_media.map((name) => thumbnail(name, row));
}

function thumbnail(name, row) {
  const image = DATA.images[name];
  if (!image) return absent(`The plot ${name} is not in rollouts/media/.`);
  return el("a", { href: image.file, target: "_blank", rel: "noopener", title: "open the plot in full size" },
    el("img", { src: image.src, width: image.width, height: image.height, alt: `plot of ${row.id}` }));
}

// A number as a bar: from the left for shares, from the middle for the advantage.
function meter(value, low, high) {
  const at = (x) => ((Math.min(Math.max(x, low), high) - low) / (high - low)) * 100;
  const bar = el("i", { class: value < 0 ? "minus" : "" });
  bar.style.left = `${Math.min(at(0), at(value))}%`;
  bar.style.width = `${Math.abs(at(value) - at(0))}%`;
  return el("span", { class: `meter${low < 0 ? " middle" : ""}` }, isNumber(value) ? bar : null);
}

function worth(row) {
  const parts = Object.entries(row.parts);
  const top = Math.max(1, ...parts.map(([, value]) => value || 0), row.score || 0);
  const line = (name, value, low, high, text) => [el("dt", {}, name), el("dd", {}, meter(value, low, high), el("b", {}, text))];
  const numbers = Object.entries(row.numbers);
  const largest = Math.max(1, ...numbers.map(([, value]) => Math.abs(value || 0)));
  return el("dl", { class: "worth" },
    numbers.map(([name, value]) => line(name, value, value < 0 ? -largest : 0, largest, short(value))),
    numbers.length ? el("div", { class: "rule" }) : null,
    parts.map(([name, value]) => line(name, value, 0, top, short(value))),
    row.unknown.map((name) => line(name, null, 0, 1, "unknown")),
    el("div", { class: "rule" }),
    line("score", row.score, 0, top, short(row.score)),
    line("advantage", row.advantage, -largestAdvantage, largestAdvantage, signed(row.advantage)));
}

const largestAdvantage = DATA.rollouts.reduce((most, row) => Math.max(most, Math.abs(row.advantage || 0)), 1e-9);

// The advantage compares the answers to one prompt in one step.
function siblings(row, choose) {
  const same = DATA.rollouts.filter((one) => one.id === row.id && one.source === row.source && one.prompt === row.prompt);
  const chip = (one) => el("button", {
    type: "button", class: `chip ${one.outcome}${one === row ? " current" : ""}`, "aria-pressed": one === row ? "true" : "false", onclick: () => choose(one),
    title: `step ${one.step}: ${one.said || one.outcome}, score ${short(one.score)}, advantage ${signed(one.advantage)}` },
    MARKS[one.outcome], isNumber(one.advantage) ? ` ${signed(one.advantage)}` : ` ${short(one.score)}`);
  const steps = [...new Set(same.map((one) => one.step))];
  return el("div", { class: "siblings" }, steps.map((step) => {
    const answers = same.filter((one) => one.step === step);
    const name = step === row.step ? `${answers.length} answers in this step` : `step ${count(step)}`;
    return el("div", {}, el("span", { class: "quiet" }, name), answers.map(chip));
  }));
}

const ending = (row) => (ENDS[row.finish] ? el("span", { class: "cut" }, ` ${ENDS[row.finish]}`) : "");
const lengthOf = (row) => (isNumber(row.tokens) ? `${row.tokens} tokens` : "");
const written = (text, search) => (text ? answerText(text, search) : el("span", { class: "quiet" }, "(empty)"));

function answer(row, search) {
  return [
    el("h4", {}, "Answer", el("small", {}, lengthOf(row), ending(row))),
    el("pre", { class: "answer", tabindex: 0 }, written(row.text, search)),
  ];
}

// Several turns, in order: what the policy sampled, and what its environment replied, with pictures.
function turns(row, search) {
  return [
    el("h4", {}, "Turns", el("small", {}, lengthOf(row), ending(row))),
    el("ol", { class: "turns", tabindex: 0 }, row.turns.map((turn) => el("li", { class: turn.kind },
      el("small", {}, turn.kind === "sampled" ? "policy" : turn.kind, turn.finish_reason && turn.finish_reason !== "stop" ? `, ended by ${turn.finish_reason.replace("_", " ")}` : ""),
      turn.error ? el("small", { class: "error" }, `error: ${turn.error}`) : null,
      turn.text || !turn.media.length ? el("pre", {}, written(turn.text, search)) : null,
      turn.media.length ? el("div", { class: "plots" }, turn.media.map((name) => thumbnail(name, row))) : null))),
  ];
}

function drawRollout(row, search, choose) {
  const said = row.said ? [" answered ", el("b", {}, row.said)] : [];
  return [
    el("div", { class: "title" }, badge(row), el("span", {}, "truth ", el("b", {}, row.truth || "–"), said),
      el("span", { class: "quiet" }, `step ${count(row.step)}`), row.source ? el("span", { class: "quiet" }, row.source) : null, el("code", {}, row.id)),
    el("div", { class: "columns" }, el("div", { class: "plots" }, plots(row)), worth(row)),
    row.error ? el("p", { class: "error" }, row.finish === "failure" ? "" : "reward error: ", row.error) : null,
    ...(row.turns.length ? turns(row, search) : answer(row, search)),
    el("h4", {}, "Prompt"),
    el("pre", { class: "prompt" }, DATA.prompts[row.prompt]),
    el("h4", {}, "The same prompt", el("small", {}, DATA.rollouts.some((one) => isNumber(one.advantage)) ? "advantage of each answer" : "score of each answer")),
    siblings(row, choose),
  ];
}
