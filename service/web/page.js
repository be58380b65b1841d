// Small things that every pane needs: making elements, saying what went wrong, a task that can be stopped.

import { ApiError } from "./api.js";
import { t } from "./i18n.js";

export const byId = (id) => document.getElementById(id);

/** An element with properties and children; text goes in as text, never as markup. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** What went wrong, in words for a person. */
export function explain(error) {
  if (!(error instanceof ApiError)) {
    console.error(error);
    return t("error.page");
  }
  const seconds = error.retryAfter ?? 1;
  return t(`error.${error.kind}`, { seconds, detail: error.detail, id: error.requestId });
}

/** Show an error with a way to try again, or with null take it away. */
export function showError(place, error, retry) {
  place.replaceChildren();
  if (error === null) return;
  place.append(make("p", { textContent: explain(error) }));
  const isWorthIt = !["invalid", "too_large", "not_found"].includes(error.kind);
  if (retry && isWorthIt) place.append(make("button", { type: "button", textContent: t("tryAgain"), onclick: retry }));
}

/** One piece of work at a time: what is begun anew stops what is under way. */
export class Task {
  /** place: where errors are shown. onBusy(isBusy). */
  constructor(place, onBusy) {
    Object.assign(this, { place, onBusy, controller: null });
  }

  /** work(signal) → anything; returns whether it came to its end. */
  async run(work) {
    this.stop();
    const controller = new AbortController();
    this.controller = controller;
    showError(this.place, null);
    this.onBusy(true);
    try {
      await work(controller.signal);
      return true;
    } catch (error) {
      if (error.name !== "AbortError" && this.controller === controller) showError(this.place, error, () => this.run(work));
      return false;
    } finally {
      if (this.controller === controller) {
        this.controller = null;
        this.onBusy(false);
      }
    }
  }

  stop() {
    this.controller?.abort();
  }
}
