// The HTTP API: a path and a body in, an answer or an ApiError out. Knows nothing of the page.

import { readEvents } from "./sse.js";
import { tab } from "./store.js";

const KEY = "meari-key";

/** What went wrong, as far as the page has to know.
 * kind: offline | broken | unauthorized | overloaded | not_ready | too_large | timeout | invalid | not_found | internal */
export class ApiError extends Error {
  constructor(kind, { detail = "", retryAfter = null, requestId = "" } = {}) {
    super(detail || kind);
    Object.assign(this, { kind, detail, retryAfter, requestId });
  }
}

const KINDS = { 400: "invalid", 401: "unauthorized", 404: "not_found", 413: "too_large", 429: "overloaded", 502: "offline", 503: "not_ready", 504: "timeout" };
const CODES = { invalid_request: "invalid", unknown_model: "not_found" }; // those that are called as no kind is

let askForKey = async () => null;
let asking = null; // promise of a key that the person is asked for

/** ask(isWrong) → a key, or null where the person gives none. */
export function onUnauthorized(ask) {
  askForKey = ask;
}

let noteUnknownModel = () => {};

/** note(): called when the service does not have a model any more. */
export function onUnknownModel(note) {
  noteUnknownModel = note;
}

export function get(path) {
  return send(path, {}).then(readJson);
}

export function post(path, body, signal) {
  return send(path, { method: "POST", body: JSON.stringify(body), signal }).then(readJson);
}

/** Each event of a stream, parsed; throws an ApiError where the stream ends too early or with an error. */
export async function* stream(path, body, signal) {
  const response = await send(path, { method: "POST", body: JSON.stringify({ ...body, stream: true }), signal });
  try {
    for await (const data of readEvents(response.body)) {
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw failure(CODES[event.error.code] ?? event.error.code, event.error, null);
      yield event;
    }
  } catch (error) {
    throw asApiError(error, "broken");
  }
  throw new ApiError("broken");
}

async function send(path, options) {
  for (;;) {
    const key = tab.get(KEY);
    const response = await attempt(path, options, key);
    if (response.ok) return response;
    const error = await errorOf(response);
    if (error.kind !== "unauthorized" || !(await hasNewKey(key))) throw error;
  }
}

/** Whether there is another key than the one that was refused. Requests that are refused together share one question. */
async function hasNewKey(refused) {
  if (tab.get(KEY) !== refused) return true;
  asking ??= askForKey(refused !== null).finally(() => (asking = null));
  const key = await asking;
  if (key !== null) tab.set(KEY, key);
  return key !== null;
}

async function attempt(path, options, key) {
  const headers = { ...(options.body && { "Content-Type": "application/json" }) };
  if (key !== null) headers.Authorization = `Bearer ${String.fromCharCode(...new TextEncoder().encode(key))}`; // a header's text is bytes
  try {
    return await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    throw asApiError(error, "offline");
  }
}

export function hasKey() {
  return tab.get(KEY) !== null;
}

async function readJson(response) {
  try {
    return await response.json();
  } catch (error) {
    throw asApiError(error, "broken");
  }
}

async function errorOf(response) {
  const body = await response.json().catch(() => null); // of a proxy: anything
  if (body?.error?.code === "unknown_model") noteUnknownModel();
  const id = response.headers.get("X-Request-Id") ?? "";
  return failure(KINDS[response.status], { request_id: id, ...body?.error }, response.headers.get("Retry-After"));
}

function failure(kind, { message = "", request_id: requestId = "" }, retryAfter) {
  const known = Object.values(KINDS).includes(kind) ? kind : "internal";
  const seconds = Number.parseInt(retryAfter ?? "", 10);
  return new ApiError(known, { detail: message, retryAfter: Number.isNaN(seconds) ? null : seconds, requestId });
}

/** An abort stays what it is; anything else that fetch throws is a connection that could not be used. */
function asApiError(error, kind) {
  return error instanceof ApiError || error.name === "AbortError" ? error : new ApiError(kind);
}
