// Two small pictures, drawn as SVG. What they show stands in numbers beside them, so they are pictures to a screen reader.

import { draw, number, signed } from "./dom.js";

const LEFT = 46, RIGHT = 16, TOP = 14, BOTTOM = 30;

// As wide as its place, so that its letters have the size of letters on a phone too.
const widthOf = (place) => Math.max(240, Math.min(832, place.clientWidth));

/** Round values, 0 among them where it lies between, from `low` or just below to `high` or just above. */
function ticks(low, high) {
  const rough = (high - low) / 4, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((times) => times * power >= rough * 0.999);
  const first = Math.floor(low / step + 1e-9), last = Math.ceil(high / step - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, place) => (first + place) * step);
}

/** As many decimals as tell one tick from the next. */
const decimals = ([first, second]) => Math.max(0, Math.ceil(-Math.log10(second - first) - 1e-9));

function frame(label, values, WIDTH, HEIGHT, digits) {
  const svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label, class: "chart" });
  const low = values[0], high = values.at(-1);
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - low) / (high - low));
  for (const value of values) {
    svg.append(draw("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value), class: "grid" }));
    svg.append(draw("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, number(value, digits)));
  }
  return { svg, y };
}

/** How likely the answer is after each step; `other` is the same behind a broken chain, as pairs of kept steps and level. */
export function staircase(place, levels, other, floor) {
  const WIDTH = widthOf(place), HEIGHT = 180;
  const low = Math.max(floor, Math.floor(Math.min(-1, ...levels, ...other.map(([, level]) => level))));
  const { svg, y } = frame("How likely the answer is after each step, in nats per answer token", [low, low / 2, 0], WIDTH, HEIGHT, 1);
  const x = (step) => LEFT + 10 + ((WIDTH - LEFT - RIGHT - 20) * step) / (levels.length - 1);
  const stairs = levels.map((level, step) => `${step ? `H${x(step)}V` : `M${x(0)},`}${y(level)}`).join("");
  svg.append(draw("path", { d: stairs, class: "own" }));
  if (other.length) {
    svg.append(draw("path", { d: other.map(([step, level], place) => `${place ? "L" : "M"}${x(step)},${y(level)}`).join(""), class: "other" }));
  }
  for (const [step, level] of other) svg.append(draw("circle", { cx: x(step), cy: y(level), r: 3.5, class: "other" }));
  levels.forEach((level, step) => {
    svg.append(draw("circle", { cx: x(step), cy: y(level), r: 4, class: "own" }, draw("title", {}, `after ${step} steps: ${number(level)}`)));
    svg.append(draw("text", { x: x(step), y: HEIGHT - 10, "text-anchor": "middle" }, step ? String(step) : "no step"));
  });
  return svg;
}

/** Trials as gain against retention; both are better to the top right. A trial that is not feasible is a ring. */
export function trials(place, points) {
  const WIDTH = widthOf(place), HEIGHT = 240;
  const gains = points.map((one) => one.domain_gain), kept = points.map((one) => one.retention);
  const across = ticks(Math.min(0, ...gains), Math.max(0.05, ...gains));
  const up = ticks(Math.min(-1, ...kept), Math.max(0, ...kept));
  const { svg, y } = frame("Trials: domain gain to the right, retention in margins to the top", up, WIDTH, HEIGHT, decimals(up));
  const left = across[0], right = across.at(-1);
  const x = (value) => LEFT + 10 + ((WIDTH - LEFT - RIGHT - 30) * (value - left)) / (right - left);
  for (const value of across) {
    svg.append(draw("text", { x: x(value), y: HEIGHT - 10, "text-anchor": "middle" }, value ? signed(value, decimals(across)) : "0"));
  }
  svg.append(draw("line", { x1: x(0), x2: x(0), y1: TOP, y2: HEIGHT - BOTTOM, class: "axis" }));
  svg.append(draw("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(0), y2: y(0), class: "axis" }));
  const labels = [];
  for (const one of points) {
    const title = `trial ${one.trial}: gain ${signed(one.domain_gain, 3)}, retention ${signed(one.retention)} margins`;
    const at = { x: x(one.domain_gain), y: y(one.retention) }, kind = one.feasible === false ? "trial lost" : "trial";
    svg.append(draw("circle", { cx: at.x, cy: at.y, r: 5, class: kind }, draw("title", {}, title)));
    const near = labels.find((label) => Math.abs(label.x - at.x) < 14 && Math.abs(label.y - at.y) < 12);
    if (near) near.names.push(one.trial);
    else labels.push({ ...at, names: [one.trial] });
  }
  for (const { x: across, y: up, names } of labels) {
    const ends = across > WIDTH - 80;
    svg.append(draw("text", { x: across + (ends ? -9 : 9), y: up - 6, "text-anchor": ends ? "end" : "start", class: "name" }, names.sort((one, other) => one - other).join(", ")));
  }
  return svg;
}
