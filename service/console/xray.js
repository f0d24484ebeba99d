// The X-ray: steps shaded by what they tell about the answer, and the answer when the chain is broken after each.

import { ask, models, stream } from "./api.js";
import { EXAMPLES, messagesOf } from "./asking.js";
import { staircase } from "./chart.js";
import { announce, find, findAll, make, number, problem, signed } from "./dom.js";

let taken = null; // the X-ray that is shown, with what it was asked by
let under_way = null;
let ticking = null; // the clock of what is under way
let waiting = false; // for `enter`, after `look`

export function begin() {
  find("#xray-question").value = EXAMPLES[0];
  find("#xray-other-question").value = EXAMPLES[1];
  find("#xray-form").addEventListener("submit", (event) => { event.preventDefault(); take(); });
  find("#xray-write").addEventListener("click", () => busy(writeReply));
  find("#xray-stop").addEventListener("click", stop);
  find("#xray-breaks").addEventListener("change", () => busy(showBreak));
  find("#xray-other-reply").addEventListener("change", forgetSwap);
  find("#xray-other-question").addEventListener("change", () => { find("#xray-other-reply").value = ""; forgetSwap(); });
}

export async function enter() {
  try {
    await fillReaders();
    if (waiting) { waiting = false; await take(); }
  } catch (error) {
    problem(find("#xray-problem"), error);
  }
}

/** Fills the form with an answer that was written elsewhere; `enter` takes its X-ray. */
export function look({ question, wantsSteps, model, reply, reasoning }) {
  find("#xray-question").value = question;
  fillReply(reply, reasoning);
  find("#xray-steps").checked = wantsSteps;
  find("#xray-answer").value = "";
  find("#xray-model").dataset.wanted = model;
  waiting = true;
}

function fillReply(content, reasoning) {
  find("#xray-reply").value = content;
  find("#xray-reasoning").value = reasoning;
  find("#xray-thought").hidden = !reasoning;
}

async function fillReaders() {
  const select = find("#xray-model"), wanted = select.dataset.wanted ?? select.value;
  const found = (await models()).map((model) => model.id);
  if (wanted && !found.includes(wanted)) found.push(wanted); // NAME@VERSION
  select.replaceChildren(...found.map((id) => make("option", { value: id }, id)));
  if (wanted) select.value = wanted;
  delete select.dataset.wanted;
}

/** One thing at a time: what is begun later ends what was begun before, at the server too. */
async function busy(work) {
  under_way?.abort();
  const stop = new AbortController();
  under_way = stop;
  find("#xray").setAttribute("aria-busy", "true");
  find("#xray-problem").replaceChildren();
  try {
    await work(stop.signal);
  } catch (error) {
    problem(find("#xray-problem"), error);
  } finally {
    if (under_way === stop) {
      find("#xray").setAttribute("aria-busy", "false");
      clearInterval(ticking);
      find("#xray-working").hidden = true;
    }
  }
}

/** The choice goes back to the break that is shown. */
function stop() {
  under_way?.abort();
  if (!taken?.kind) return;
  find(`#xray-breaks input[value=${taken.kind}]`).checked = true;
  find("#xray-other").hidden = taken.kind !== "swapped";
}

/** Says what is done now, and for how long. */
function stage(text) {
  const began = performance.now(), place = find("#xray-stage");
  const tick = () => { place.textContent = `${text} ${((performance.now() - began) / 1000).toFixed(0)} s`; };
  clearInterval(ticking);
  ticking = setInterval(tick, 250);
  tick();
  find("#xray-working").hidden = false;
  announce(text);
}

/** The reader's own reply, which `hear` is given as far as it is written. */
async function write(question, signal, hear) {
  const model = find("#xray-model").value;
  const body = { model, messages: messagesOf(question, find("#xray-steps").checked), max_tokens: 256, temperature: 0, stream: true };
  const message = { content: "", reasoning: "" };
  stage(`${model} answers\u2026`);
  await stream("v1/chat/completions", body, signal, (event) => {
    const delta = event.choices[0]?.delta;
    message.content += delta?.content ?? "";
    message.reasoning += delta?.reasoning_content ?? "";
    hear(message);
  });
}

const writeReply = (signal) => write(find("#xray-question").value.trim(), signal, ({ content, reasoning }) => fillReply(content, reasoning));

const take = () => busy(async (signal) => {
  if (!find("#xray-reply").value.trim()) await writeReply(signal);
  const asked = {
    model: find("#xray-model").value,
    messages: messagesOf(find("#xray-question").value.trim(), find("#xray-steps").checked),
    reply: find("#xray-reply").value,
    reasoning: find("#xray-reasoning").value,
    answer: find("#xray-answer").value.trim() || null,
  };
  stage(`${asked.model} reads the chain, and answers after every step\u2026`);
  const found = await ask("v1/xray", { body: asked, signal });
  taken = { asked, found };
  find("#xray-result").hidden = false;
  await showBreak(signal);
  announce(`The X-ray of ${found.steps.length} steps is there.`);
});

function forgetSwap() {
  if (taken) delete taken.found.breaks.swapped;
  if (chosen() === "swapped") busy(showBreak);
}

const chosen = () => find("#xray-breaks input:checked").value;

/** Reads what is not read yet of the chosen break, and shows all. */
async function showBreak(signal) {
  if (!taken) return;
  const kind = chosen(), { asked, found } = taken;
  find("#xray-other").hidden = kind !== "swapped";
  if (!found.breaks[kind]) {
    const body = { ...asked, breaks: [kind] };
    if (kind === "swapped") body.other = await otherReply(signal);
    stage(`${asked.model} answers behind every broken chain\u2026`);
    const more = await ask("v1/xray", { body, signal });
    found.breaks[kind] = more.breaks[kind];
    found.other_states_answer = more.other_states_answer ?? found.other_states_answer;
  }
  show(found, kind);
  taken.kind = kind;
}

async function otherReply(signal) {
  const place = find("#xray-other-reply");
  if (!place.value.trim()) {
    await write(find("#xray-other-question").value.trim(), signal, ({ content, reasoning }) => { place.value = reasoning || content; });
  }
  return place.value;
}

const NOTES = {
  cut: "The model is made to answer after each step, without the rest: it may answer with what that step arrived at.",
  filled: "The steps that are left out are replaced by dots, as many tokens as they had: what is lost is what they said, not room to compute.",
  swapped: "From there on the chain goes on as that of another question.",
};

function show(found, kind) {
  const levels = [found.before, ...found.steps.map((step) => step.log_probability)];
  const broken = found.breaks[kind];
  const said = found.steps.findIndex((step) => step.states_answer);
  const before = said > 0 ? ` Step ${said + 1} states it; the steps before that tell ${signed(found.before_it_is_stated)}.` : "";
  find("#xray-summary").replaceChildren(
    "Read by ", make("strong", {}, found.model), ", the chain tells ", make("strong", {}, `${signed(found.information_gain)} nats`),
    " per answer token about ", make("strong", { className: "answer" }, found.answer),
    ` (from ${number(found.before)} to ${number(found.after)}).${before}`,
  );
  const other = kind === "cut" ? [] : broken.map((one) => [one.kept, one.log_probability]);
  const chart = find("#xray-chart");
  chart.replaceChildren(staircase(chart, levels, other, found.floor), caption(kind));
  const leaks = kind === "swapped" && found.other_states_answer ? " The other chain names this answer too, so a swap may break little." : "";
  find("#xray-note").textContent = NOTES[kind] + leaks;
  const most = Math.max(0.5, ...found.steps.map((step) => Math.abs(step.information_gain)));
  find("#xray-chain").replaceChildren(
    head(kind, found),
    row("Before any step", null, null, broken.find((one) => one.kept === 0), found),
    ...found.steps.map((step) => row(step.text, step, step.information_gain / most, broken.find((one) => one.kept === step.index), found)),
  );
}

function caption(kind) {
  const line = kind === "cut" ? "" : kind === "filled" ? " Dashed: the rest filled with dots." : " Dashed: the rest of another chain.";
  return make("figcaption", {}, `Log-probability of the answer, in nats per token, after each step.${line}`);
}

function row(text, step, share, broken, found) {
  const gain = step && make("span", { className: "gain", title: "information gain, in nats per answer token" },
    make("span", { className: "hidden" }, "information gain "), signed(step.information_gain));
  const stated = step?.states_answer ? make("span", { className: "tag" }, "answer is said") : null;
  const item = make("li", { className: step ? (share >= 0 ? "up" : "down") : "start" },
    make("p", { className: "step" }, make("span", {}, text), stated), gain, ...[outcome(broken, found)].flat());
  if (step) item.style.setProperty("--share", String(Math.min(1, Math.abs(share))));
  return item;
}

const HEADS = { cut: "answer when cut here", filled: "answer when filled from here", swapped: "answer when swapped from here" };

/** For eyes: each row says the same to a screen reader. */
function head(kind, found) {
  return make("li", { className: "head", "aria-hidden": "true" }, make("span", {}, "step"), make("span", { className: "gain" }, "nats"),
    make("span", {}, HEADS[kind]), make("span", { className: "level" }, `log p(${found.answer})`));
}

function outcome(broken, found) {
  if (!broken) return make("p", { className: "outcome hint" }, "the whole chain");
  const kind = broken.same ? "same" : "other";
  const level = broken.log_probability <= found.floor ? `\u2264 ${number(found.floor, 0)}` : number(broken.log_probability);
  return [
    make("p", { className: "outcome" }, make("strong", {}, broken.answer || "(nothing)"),
      make("span", { className: `tag ${kind}` }, broken.same ? "same answer" : "another answer")),
    make("p", { className: "level" }, make("span", { className: "named" }, `log p(${found.answer}) `), level),
  ];
}
