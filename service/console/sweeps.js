// Sweeps: begun from a recipe, watched while they run.

import { ask, path } from "./api.js";
import { trials } from "./chart.js";
import { announce, find, make, problem, when } from "./dom.js";

const OWN = "\u0000own";
const POLL_MS = 1500;
let recipes = new Map();
let watched = null; // a job's id
let timer = null;

export function begin() {
  find("#sweep-form").addEventListener("submit", (event) => { event.preventDefault(); start(); });
  find("#sweep-recipe").addEventListener("change", showRecipe);
  find("#sweep-cancel").addEventListener("click", cancel);
}

export async function enter() {
  try {
    recipes = new Map((await ask("v1/recipes")).data.map((one) => [one.id, one.toml]));
    const select = find("#sweep-recipe"), before = select.value;
    select.replaceChildren(
      ...[...recipes.keys()].map((id) => make("option", { value: id }, id)), make("option", { value: OWN }, "my own, pasted below"));
    if (before) select.value = before;
    showRecipe();
    find("#sweep-problem").replaceChildren();
    await follow();
  } catch (error) {
    problem(find("#sweep-problem"), error);
  }
}

export function leave() {
  clearTimeout(timer);
}

function showRecipe() {
  const chosen = find("#sweep-recipe").value, text = find("#sweep-toml");
  text.readOnly = chosen !== OWN;
  if (chosen !== OWN) text.value = recipes.get(chosen) ?? "";
  find("#sweep-text").open ||= chosen === OWN;
}

async function start() {
  const chosen = find("#sweep-recipe").value;
  const body = chosen === OWN ? { toml: find("#sweep-toml").value } : { recipe: chosen };
  if (find("#sweep-name").value.trim()) body.name = find("#sweep-name").value.trim();
  if (find("#sweep-trials").value) body.trials = find("#sweep-trials").valueAsNumber;
  try {
    find("#sweep-problem").replaceChildren();
    watched = (await ask("v1/sweeps", { body })).id;
    announce("The sweep has begun.");
    await follow();
    find("#sweep-detail").scrollIntoView({ block: "nearest" });
  } catch (error) {
    problem(find("#sweep-problem"), error);
  }
}

async function cancel() {
  try {
    await ask(`v1/fine_tuning/jobs/${path(watched)}/cancel`, { method: "POST" });
    await follow();
  } catch (error) {
    problem(find("#sweep-problem"), error);
  }
}

const ENDED = ["succeeded", "failed", "cancelled"];

/** Looks now, and again while something runs and somebody looks. */
async function follow() {
  clearTimeout(timer);
  const jobs = (await ask("v1/fine_tuning/jobs?limit=20")).data;
  watched ??= jobs[0]?.id ?? null;
  listJobs(jobs);
  const job = jobs.find((one) => one.id === watched);
  if (job) await detail(job);
  if (jobs.some((one) => !ENDED.includes(one.status))) {
    timer = setTimeout(() => follow().catch((error) => problem(find("#sweep-problem"), error)), document.hidden ? 10 * POLL_MS : POLL_MS);
  }
}

function listJobs(jobs) {
  const focused = document.activeElement?.dataset?.job;
  const place = find("#sweep-jobs");
  place.replaceChildren(...jobs.map((job) => make("li", {}, make("button", {
    type: "button", className: "item", "data-job": job.id, "aria-pressed": String(job.id === watched),
    onclick: () => { watched = job.id; follow().catch((error) => problem(find("#sweep-problem"), error)); },
  }, make("strong", {}, job.suffix ?? job.id), make("span", { className: `state ${job.status}` }, job.status), make("small", {}, when(job.created_at))))));
  if (!jobs.length) place.replaceChildren(make("li", { className: "hint" }, "No sweep yet."));
  if (focused) place.querySelector(`[data-job="${CSS.escape(focused)}"]`)?.focus();
}

async function detail(job) {
  const told = (await ask(`v1/fine_tuning/jobs/${path(job.id)}/events?limit=100`)).data;
  if (job.id !== watched) return;
  find("#sweep-detail").hidden = false;
  find("#sweep-detail-title").textContent = job.suffix ?? job.id;
  const state = find("#sweep-state"), now = `${job.status}: ${job.error?.message ?? job.fine_tuned_model ?? told[0]?.message ?? ""}`;
  if (state.textContent !== now) state.textContent = now;
  if (job.fine_tuned_model) {
    state.append(" ", make("a", { href: "#releases" }, "Look at it among the releases"));
  }
  find("#sweep-cancel").hidden = ENDED.includes(job.status);
  const points = told.filter((one) => one.type === "metrics").map((one) => one.data);
  const chart = find("#sweep-chart");
  chart.replaceChildren(...(points.length
    ? [trials(chart, points), make("figcaption", {}, "Trials by domain gain (right) and retention in margins (up): 0 lost nothing, −1 lost what is tolerable. A ring lost more than that.")]
    : []));
  const log = find("#sweep-events");
  if (log.dataset.shown !== job.id) log.replaceChildren();
  log.dataset.shown = job.id;
  // Only what is new is added, or a screen reader would say all of it again.
  const known = new Set([...log.children].map((line) => line.dataset.event));
  log.prepend(...told.filter((one) => !known.has(one.id)).map((one) => make("li", { "data-event": one.id },
    make("time", {}, new Date(one.created_at * 1000).toLocaleTimeString()), " ", one.message)));
}
