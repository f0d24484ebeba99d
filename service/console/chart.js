// Two small pictures, drawn as SVG. What they show stands in numbers beside them, so they are pictures to a screen reader.

import { draw, number, signed } from "./dom.js";

const HEIGHT = 180, LEFT = 46, RIGHT = 16, TOP = 14, BOTTOM = 30;

// As wide as its place, so that its letters have the size of letters on a phone too.
const widthOf = (place) => Math.max(240, Math.min(832, place.clientWidth));

function frame(label, low, high, WIDTH) {
  const svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label, class: "chart" });
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - low) / (high - low || 1));
  for (const value of [low, (low + high) / 2, high]) {
    svg.append(draw("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value), class: "grid" }));
    svg.append(draw("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, number(value, 1)));
  }
  return { svg, y };
}

/** How likely the answer is after each step; `other` is the same behind a broken chain, as pairs of kept steps and level. */
export function staircase(place, levels, other, floor) {
  const WIDTH = widthOf(place);
  const low = Math.max(floor, Math.floor(Math.min(...levels, ...other.map(([, level]) => level))));
  const { svg, y } = frame("How likely the answer is after each step, in nats per answer token", low, 0, WIDTH);
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

/** Trials as gain against retention; both are better to the top right. */
export function trials(place, points) {
  const WIDTH = widthOf(place);
  const gains = points.map((one) => one.domain_gain), kept = points.map((one) => one.retention);
  const low = Math.min(-1, ...kept), high = Math.max(0.2, ...kept);
  const left = Math.min(0, ...gains), right = Math.max(0.05, ...gains);
  const { svg, y } = frame("Trials: domain gain to the right, retention in margins to the top", low, high, WIDTH);
  const x = (value) => LEFT + 10 + ((WIDTH - LEFT - RIGHT - 20) * (value - left)) / (right - left);
  svg.append(draw("line", { x1: x(0), x2: x(0), y1: TOP, y2: HEIGHT - BOTTOM, class: "axis" }));
  svg.append(draw("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(0), y2: y(0), class: "axis" }));
  for (const one of points) {
    const title = `trial ${one.trial}: gain ${signed(one.domain_gain, 3)}, retention ${signed(one.retention)} margins`;
    svg.append(draw("circle", { cx: x(one.domain_gain), cy: y(one.retention), r: 5, class: "trial" }, draw("title", {}, title)));
    svg.append(draw("text", { x: x(one.domain_gain) + 8, y: y(one.retention) + 4 }, String(one.trial)));
  }
  svg.append(draw("text", { x: WIDTH - RIGHT, y: HEIGHT - 10, "text-anchor": "end" }, `domain gain, ${signed(left, 2)} to ${signed(right, 2)}`));
  return svg;
}
