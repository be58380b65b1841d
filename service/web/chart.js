// Shares over time → one line chart: a line for each model, with axes, a legend, and words for who cannot see it.

import { number, percent, t } from "./i18n.js";
import { make } from "./page.js";

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT] = [720, 260];
const AREA = { left: 52, right: WIDTH - 12, top: 12, bottom: HEIGHT - 40 };
const NUM_TICKS = 8;

export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** lines: {name, note, shares}, each share from 0 to 1; `first`: number of the token that the first share belongs to. */
export function drawChart(place, lines, first, titles) {
  const length = Math.max(2, ...lines.map(({ shares }) => shares.length));
  const x = (at) => AREA.left + ((AREA.right - AREA.left) * at) / (length - 1);
  const y = (share) => AREA.bottom - (AREA.bottom - AREA.top) * share;
  const label = `${titles.name} ${lines.map(({ name, note }) => `${name}: ${note}`).join(" ")}`;
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label }, ...axes(x, y, length, first, titles));
  lines.forEach(({ shares }, i) => {
    const points = shares.map((share, at) => `${x(at).toFixed(1)},${y(share).toFixed(1)}`).join(" ");
    picture.append(svg("polyline", { points, class: `line line-${i % 6}` }));
  });
  const legend = lines.map(({ name, note }, i) => make("li", {}, sample(i), make("strong", { textContent: name }), ` ${note}`));
  place.replaceChildren(make("div", { className: "chart" }, picture), make("ul", { className: "chart-legend" }, ...legend));
}

const sample = (i) => svg("svg", { viewBox: "0 0 28 8", width: 28, height: 8, "aria-hidden": "true" }, svg("path", { d: "M0 4H28", class: `line line-${i % 6}` }));

function axes(x, y, length, first, titles) {
  const parts = [svg("path", { d: `M${AREA.left} ${AREA.top}V${AREA.bottom}H${AREA.right}`, class: "axis" })];
  const write = (text, attributes) => parts.push(svg("text", attributes, text));
  for (const share of [0, 0.5, 1]) {
    parts.push(svg("path", { d: `M${AREA.left} ${y(share)}H${AREA.right}`, class: "grid" }));
    write(percent(share), { x: AREA.left - 6, y: y(share) + 4, "text-anchor": "end" });
  }
  const step = Math.max(1, Math.ceil((length - 1) / NUM_TICKS));
  for (let at = 0; at < length; at += step) write(number(first + at), { x: x(at), y: AREA.bottom + 16, "text-anchor": "middle" });
  write(titles.x, { x: (AREA.left + AREA.right) / 2, y: HEIGHT - 6, "text-anchor": "middle" });
  write(titles.y, { x: -(AREA.top + AREA.bottom) / 2, y: 12, "text-anchor": "middle", transform: "rotate(-90)" });
  return parts;
}
