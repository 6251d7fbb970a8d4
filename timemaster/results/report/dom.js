// Helpers for all parts of the page. Text is added as text nodes only: no data of a run is ever parsed as markup.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
const byId = (id) => document.getElementById(id);
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

// 1234567 -> "1.23M", 0.0000004 -> "4.0e-7", 0.84492 -> "0.845"
function short(value) {
  if (!isNumber(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e6) return `${(value / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${(value / 1e3).toPrecision(3)}k`;
  if (size >= 100) return value.toFixed(0);
  if (size !== 0 && size < 1e-3) return value.toExponential(1);
  return Number.isInteger(value) ? String(value) : value.toPrecision(3);
}

const fixed = (value, digits = 3) => (isNumber(value) ? value.toFixed(digits) : "–");
const signed = (value, digits = 2) => (isNumber(value) ? (value > 0 ? "+" : value < 0 ? "−" : "") + Math.abs(value).toFixed(digits) : "–");
const [HEADLINE] = DATA.numbers; // the number by which the run's answers are judged
const headline = (figures) => figures.numbers[0] || null;
const worthOf = (figures) => fixed(headline(figures)?.value);
const count = (value) => value.toLocaleString("en-US");

function duration(seconds) {
  if (seconds < 90) return `${seconds.toFixed(0)} s`;
  if (seconds < 5400) return `${(seconds / 60).toFixed(0)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

// The end of a path, which is the part that distinguishes paths.
function tail(path, parts = 2) {
  const pieces = String(path).split("/").filter(Boolean);
  return pieces.length > parts + 1 ? `…/${pieces.slice(-parts).join("/")}` : String(path);
}

// A table that may be wider than the window: it scrolls inside its box, and a hint says so.
function scrolling(table, name) {
  const hint = el("p", { class: "sideways", hidden: true }, "scroll sideways for all columns →");
  const box = el("div", { class: "scroll", role: "region", tabindex: 0, "aria-label": name }, table);
  const look = () => {
    const hidden = box.scrollWidth - box.clientWidth;
    hint.hidden = hidden <= 1;
    box.classList.toggle("more", hidden - box.scrollLeft > 1);
  };
  box.addEventListener("scroll", look);
  new ResizeObserver(look).observe(box);
  return [hint, box];
}

const absent = (text) => el("p", { class: "absent" }, text);
