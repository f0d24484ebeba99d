// Several models answer one prompt side by side, each in a stream of its own.

import { models, stream } from "./api.js";
import { EXAMPLES, messagesOf } from "./asking.js";
import { announce, find, findAll, make, problem } from "./dom.js";
import { look } from "./xray.js";

const ANSWER = /Answer:(.*)/;
let running = null;

export function begin() {
  find("#compare-prompt").value = EXAMPLES[0];
  find("#compare-form").addEventListener("submit", (event) => { event.preventDefault(); compare(); });
  find("#compare-stop").addEventListener("click", () => running?.abort());
  find("#compare-prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find("#compare-form").requestSubmit();
  });
}

export async function enter() {
  const place = find("#compare-models");
  const chosen = new Set(findAll("input:checked", place).map((input) => input.value));
  try {
    const found = await models();
    const boxes = found.map((model, index) => {
      const checked = chosen.size ? chosen.has(model.id) : index < 3;
      const served = model.root && model.root !== model.id ? make("small", {}, ` ${model.root}`) : null;
      const name = model.parent ? null : make("small", {}, " backbone");
      return make("label", { className: "check" }, make("input", { type: "checkbox", value: model.id, checked }), " ", model.id, served, name);
    });
    place.replaceChildren(make("legend", {}, "Who answers"), ...boxes);
    find("#compare-problem").replaceChildren();
  } catch (error) {
    place.replaceChildren(make("legend", {}, "Who answers"));
    problem(find("#compare-problem"), error);
  }
}

/** Goes there with one more that answers, by its NAME@VERSION. */
export function also(release) {
  find("#compare-more").value = release;
  location.hash = "#compare";
}

async function compare() {
  const more = find("#compare-more").value.split(",").map((name) => name.trim()).filter(Boolean);
  const chosen = [...new Set([...findAll("#compare-models input:checked").map((input) => input.value), ...more])];
  if (!chosen.length) return problem(find("#compare-problem"), new Error("Choose who answers."));
  running?.abort();
  const stop = new AbortController();
  running = stop;
  find("#compare-stop").disabled = false;
  find("#compare-problem").replaceChildren();
  const asked = {
    question: find("#compare-prompt").value.trim(),
    wantsSteps: find("#compare-steps").checked,
    tokens: find("#compare-tokens").valueAsNumber,
    temperature: find("#compare-temperature").valueAsNumber,
  };
  const columns = chosen.map((model) => column(model));
  find("#compare-replies").replaceChildren(...columns.map((one) => one.card));
  announce(`${chosen.length} models are asked.`);
  await Promise.all(columns.map((one) => answer(one, asked, stop.signal)));
  sideBySide(columns, asked);
  if (running === stop) find("#compare-stop").disabled = true;
}

function column(model) {
  const text = make("div", { className: "reply", "aria-busy": "true" });
  const thought = make("div", { className: "reply thought", hidden: true });
  const facts = make("p", { className: "facts" }, "waits…");
  const xray = make("button", { type: "button", className: "quiet", disabled: true }, "X-ray this answer");
  const title = make("h2", {}, model);
  const said = make("p", { className: "said" });
  const card = make("article", { className: "card", "aria-label": model }, title, facts, thought, text, said, make("p", { className: "row" }, xray));
  return { model, ended: false, card, title, text, thought, facts, said, xray };
}

/** The answers alone, below each other's chains: who agrees with the first is seen at a glance. */
function sideBySide(columns, asked) {
  const [first, ...others] = columns.map((one) => ANSWER.exec(one.text.textContent)?.[1].trim() ?? null);
  columns.forEach((one, place) => {
    const own = place ? others[place - 1] : first;
    if (own === null) {
      if (asked.wantsSteps && one.ended) one.said.replaceChildren(make("span", { className: "hint" }, "No line begins with Answer:"));
      return;
    }
    const agrees = own === first;
    const mark = place && first !== null ? make("span", { className: `tag ${agrees ? "same" : "other"}` }, agrees ? "as the first" : "differs") : null;
    one.said.replaceChildren("Answer ", make("strong", {}, own), " ", mark ?? "");
  });
}

async function answer(one, asked, signal) {
  const body = {
    model: one.model,
    messages: messagesOf(asked.question, asked.wantsSteps),
    max_tokens: asked.tokens,
    temperature: asked.temperature,
    stream: true,
    stream_options: { include_usage: true },
  };
  const began = performance.now();
  let answered = one.model, tokens = 0, reason = "", first = null;
  const tell = () => {
    const seconds = (performance.now() - began) / 1000;
    one.facts.textContent = `${tokens ? `${tokens} tokens, ` : ""}${first === null ? "" : `first after ${first.toFixed(2)} s, `}${seconds.toFixed(1)} s${reason}`;
  };
  try {
    await stream("v1/chat/completions", body, signal, (event) => {
      answered = event.model ?? answered;
      const choice = event.choices[0];
      if (choice?.delta.reasoning_content) { one.thought.hidden = false; one.thought.append(choice.delta.reasoning_content); }
      if (choice?.delta.content) one.text.append(choice.delta.content);
      if (first === null && (choice?.delta.content || choice?.delta.reasoning_content)) first = (performance.now() - began) / 1000;
      one.ended ||= Boolean(choice?.finish_reason);
      if (choice?.finish_reason === "length") reason = ", cut at the limit";
      tokens = event.usage?.completion_tokens ?? tokens;
      one.title.textContent = answered;
      tell();
    });
    announce(`${answered} has answered.`);
  } catch (error) {
    if (error.name === "AbortError") reason = ", stopped";
    else problem(one.text, error);
  }
  tell();
  one.text.setAttribute("aria-busy", "false");
  const reply = one.text.textContent;
  one.xray.disabled = !reply || Boolean(find(".problem", one.text));
  one.xray.addEventListener("click", () => {
    look({ ...asked, model: answered, reply, reasoning: one.thought.textContent });
    location.hash = "#xray";
  });
}
