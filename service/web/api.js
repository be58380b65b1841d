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

const KINDS = { 400: "invalid", 401: "unauthorized", 404: "not_found", 413: "too_large", 429: "overloaded", 503: "not_ready", 504: "timeout" };

let askForKey = async () => null;

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
      if (event.error) throw failure(event.error.code, event.error, null);
      yield event;
    }
  } catch (error) {
    throw asApiError(error, "broken");
  }
  throw new ApiError("broken");
}

async function send(path, options) {
  for (let isWrong = false; ; isWrong = true) {
    const response = await attempt(path, options);
    if (response.ok) return response;
    const error = await errorOf(response);
    const key = error.kind === "unauthorized" ? await askForKey(isWrong || hasKey()) : null;
    if (key === null) throw error;
    tab.set(KEY, key);
  }
}

async function attempt(path, options) {
  const headers = { ...(options.body && { "Content-Type": "application/json" }) };
  if (hasKey()) headers.Authorization = `Bearer ${tab.get(KEY)}`;
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
  const body = await response.json().catch(() => ({}));
  if (body.error?.code === "unknown_model") noteUnknownModel();
  return failure(KINDS[response.status], body.error ?? {}, response.headers.get("Retry-After"));
}

function failure(kind, { code, message = "", request_id: requestId = "" }, retryAfter) {
  const known = kind === code || Object.values(KINDS).includes(kind) ? kind : "internal";
  const seconds = Number.parseInt(retryAfter ?? "", 10);
  return new ApiError(known, { detail: message, retryAfter: Number.isNaN(seconds) ? null : seconds, requestId });
}

/** An abort stays what it is; anything else that fetch throws is a connection that could not be used. */
function asApiError(error, kind) {
  return error instanceof ApiError || error.name === "AbortError" ? error : new ApiError(kind);
}
