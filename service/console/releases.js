// What every name serves, its versions with their gate tables, and the one button that promotes or rolls back.

import { ask, path } from "./api.js";
import { also } from "./compare.js";
import { announce, find, make, problem } from "./dom.js";

const POLL_MS = 1000;
const gates = new Map(); // by name: the gate that runs, as far as this page began it

export function begin() {
  find("#releases-refresh").addEventListener("click", async () => { await enter(); announce("The releases were read again."); });
  find("#act-not").addEventListener("click", () => find("#act-dialog").close());
}

export async function enter() {
  try {
    const names = (await ask("v1/releases")).data;
    find("#releases-problem").replaceChildren();
    find("#releases-names").replaceChildren(...names.map(card));
    if (!names.length) find("#releases-names").replaceChildren(make("p", { className: "hint" }, "Nothing is published yet: start a sweep."));
  } catch (error) {
    find("#releases-names").replaceChildren();
    problem(find("#releases-problem"), error);
  }
}

function card(name) {
  const progress = make("div", { className: "progress", hidden: true });
  const place = make("div");
  if (gates.has(name.name)) setTimeout(() => watch(name.name, place, progress).catch((error) => problem(place, error)));
  const earlier = name.history.map((entry) => entry.version).filter((version) => version !== name.champion);
  const back = earlier.length
    ? make("button", { type: "button", className: "quiet danger", onclick: () => rollBack(name, place) }, "Roll back…")
    : null;
  const champion = name.champion ? [`${name.name}@${name.champion}`, make("span", { className: "tag" }, "champion")] : [make("span", { className: "hint" }, "no champion yet")];
  return make("article", { className: "card name", "aria-label": name.name },
    make("div", { className: "row" }, make("h2", {}, name.name), make("p", { className: "champion" }, champion), make("span", { className: "spring" }), back),
    name.canary ? make("p", { className: "hint" }, name.canary) : null,
    name.warnings.map((warning) => make("p", { className: "warning" }, warning)),
    name.proposals.map((proposal) => make("p", { className: "warning" }, proposal.sentence)),
    place, progress,
    make("ul", { className: "versions" }, name.candidates.map((version) => row(name, version, place, progress))),
    history(name));
}

function row(name, version, place, progress) {
  const release = `${name.name}@${version.version}`;
  const table = make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": `Gate of ${release}` });
  const details = make("details", {}, make("summary", {}, `Gate of ${release}`), table);
  details.addEventListener("toggle", () => details.open && gateTable(name, version, table));
  const act = version.champion
    ? null
    : make("button", { type: "button", className: "main", onclick: () => promote(name, version, place, progress) }, `Promote ${release}…`);
  return make("li", {},
    make("div", { className: "row" },
      make("strong", {}, release), make("span", { className: `state ${version.verdict.replace(" ", "-")}` }, version.verdict),
      version.champion ? make("span", { className: "tag" }, "champion") : null,
      version.aliases.filter((alias) => alias !== "champion").map((alias) => make("span", { className: "tag" }, alias)),
      version.overridden ? make("span", { className: "tag bad" }, "overridden") : null,
      make("small", {}, new Date(version.created).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" })),
      make("span", { className: "spring" }),
      make("button", { type: "button", className: "quiet", "aria-label": `Compare ${release}`, onclick: () => also(release) }, "Compare"), act),
    version.verdict === "not gated" ? null : details);
}

const withMinus = (text) => text.replace(/(?<![\w-])-(?=\d)/g, "\u2212");

async function gateTable(name, version, place) {
  if (place.childElementCount) return;
  place.textContent = "Reading…";
  try {
    const gate = await ask(`v1/releases/${path(name.name)}/versions/${version.version}/gate`);
    const head = make("tr", {}, gate.columns.map((column, index) => make("th", { scope: "col", className: index > 1 ? "figure" : "" }, column)));
    const body = gate.rows.map((cells) => make("tr", {}, cells.map((cell, index) =>
      index ? make("td", { className: index === 1 ? `state ${cell.split(" ")[0]}` : "figure" }, withMinus(cell)) : make("th", { scope: "row" }, cell))));
    place.replaceChildren(make("p", {}, withMinus(gate.sentence)), make("table", {}, make("thead", {}, head), make("tbody", {}, body)));
  } catch (error) {
    problem(place, error);
  }
}

function history(name) {
  if (!name.history.length) return null;
  const lines = name.history.toReversed().map((entry) =>
    make("li", {}, `${entry.number}. ${entry.kind} @${entry.version} (${entry.verdict}) by ${entry.actor}, ${entry.created}`, entry.reason ? `: ${entry.reason}` : ""));
  return make("details", {}, make("summary", {}, "History"), make("ol", { className: "log" }, lines));
}

/** Asks whether to go on; the reason, or null. */
function confirmed({ title, text, yes, needsReason }) {
  const dialog = find("#act-dialog"), reason = find("#act-reason");
  find("#act-title").textContent = title;
  find("#act-text").textContent = text;
  find("#act-yes").textContent = yes;
  find("#act-optional").hidden = needsReason;
  reason.required = needsReason;
  reason.value = "";
  dialog.returnValue = "";
  find("#act-yes").value = "yes";
  dialog.showModal();
  reason.focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes" ? reason.value.trim() : null), { once: true });
  });
}

async function promote(name, version, place, progress) {
  const release = `${name.name}@${version.version}`;
  const now = name.champion ? `${name.name}@${name.champion} is champion now.` : "The name has no champion yet.";
  const reason = await confirmed({
    title: `Promote ${release}`, yes: "Run the gate",
    text: `${now} The gate is run on items that nobody has seen; where it passes, ${release} answers for ${name.name}.`,
  });
  if (reason === null) return;
  try {
    place.replaceChildren();
    const job = await ask(`v1/releases/${path(name.name)}/promote`, { body: { version: version.version, reason, expected_head: name.head } });
    gates.set(name.name, { job, release });
    await watch(name.name, place, progress);
  } catch (error) {
    await refused(error, place);
  }
}

const duration = (seconds) => (seconds < 60 ? `${seconds} s` : `${Math.floor(seconds / 60)} min ${seconds % 60} s`);

/** Shows how far the gate is, for as long as its card is there. */
async function watch(name, place, progress) {
  const { job, release } = gates.get(name);
  progress.hidden = false;
  const cancel = make("button", { type: "button", className: "quiet danger", onclick: () => ask(`v1/releases/promotions/${path(job.id)}/cancel`, { method: "POST" }) }, "Cancel the gate");
  const passed = make("small", {}, "begins\u2026");
  const lines = make("ol", { className: "log", role: "log", "aria-label": `Gate of ${release}`, tabIndex: 0 });
  progress.replaceChildren(make("p", { className: "row" }, make("strong", {}, `Gate of ${release}`),
    make("progress", { "aria-label": `The gate of ${release} runs` }), passed, make("span", { className: "spring" }), cancel), lines);
  let seen = 0;
  while (progress.isConnected) {
    const [now, told] = await Promise.all([
      ask(`v1/releases/promotions/${path(job.id)}`), ask(`v1/releases/promotions/${path(job.id)}/events`)]);
    const events = told.data.toReversed();
    lines.append(...events.slice(seen).map((event) => make("li", {}, event.message)));
    seen = events.length;
    if (now.status === "running") passed.textContent = `${duration(Math.max(0, Math.round(Date.now() / 1000 - job.created_at)))}; a round may take minutes`;
    if (["succeeded", "failed", "cancelled"].includes(now.status)) {
      gates.delete(name);
      return ended(now, release);
    }
    await new Promise((resolve) => { setTimeout(resolve, POLL_MS); });
  }
}

async function ended(job, release) {
  const told = job.error?.message ?? job.sentence ?? `The gate was ${job.status}.`;
  await enter();
  const kind = job.promoted ? "good" : "problem";
  find("#releases-problem").replaceChildren(make("p", { className: kind, role: job.promoted ? "status" : "alert" },
    job.promoted ? `${release} is the champion. ` : "", told));
  announce(job.promoted ? `${release} is the champion.` : told);
}

async function rollBack(name, place) {
  const reason = await confirmed({
    title: `Roll ${name.name} back`, yes: "Roll back", needsReason: true,
    text: `${name.name}@${name.champion} is champion now. The champion before it answers again at once; nothing is deleted.`,
  });
  if (reason === null) return;
  try {
    const done = await ask(`v1/releases/${path(name.name)}/rollback`, { body: { reason, expected_head: name.head } });
    await enter();
    const text = `${done.name}@${done.version} is the champion again.`;
    find("#releases-problem").replaceChildren(make("p", { className: "good", role: "status" }, text));
    announce(text);
  } catch (error) {
    await refused(error, place);
  }
}

/** What somebody else changed meanwhile is shown as it is now, with what was refused. */
async function refused(error, place) {
  problem(place, error);
  if (error.code !== "champion_moved") return;
  await enter();
  problem(find("#releases-problem"), error);
}
