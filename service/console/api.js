// The service's own API, asked with the reader's key. The page lies at /console/, so the API is one folder up.

const ROOT = "../";
const KEY = "graftline.key";

/** For this tab alone, until it is closed. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (secret) => (secret ? sessionStorage.setItem(KEY, secret) : sessionStorage.removeItem(KEY)),
};

/** What the server refused, in its own words. */
export class Refused extends Error {
  constructor(status, error) {
    super(error.message);
    Object.assign(this, { name: "Refused", status, code: error.code, param: error.param });
  }
}

async function send(path, { body, method = body === undefined ? "GET" : "POST", signal } = {}) {
  const headers = {};
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(ROOT + path, { method, headers, signal, cache: "no-store", body: body && JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, { message: "The server does not answer. Is it still running?", code: "unreachable" });
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => null);
  throw new Refused(response.status, told?.error ?? { message: `The server answered ${response.status}.`, code: "unknown" });
}

export const ask = async (path, given) => (await send(path, given)).json();

/** Calls `hear` with every event of a stream; returns at its end. */
export async function stream(path, body, signal, hear) {
  const response = await send(path, { body, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (held + value).split("\n\n");
    held = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ") || event === "data: [DONE]") continue;
      const told = JSON.parse(event.slice("data: ".length));
      if (told.error) throw new Refused(500, told.error);
      hear(told);
    }
  }
}

export const models = async () => (await ask("v1/models")).data;
export const path = (...parts) => parts.map(encodeURIComponent).join("/");
