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

/** Whether all fields of a form hold what they may; else the first that does not is pointed at. */
export function isFilled(form) {
  clearPoints(form);
  const wrong = [...form.elements].find((field) => field.willValidate && !field.validity.valid);
  if (wrong) pointAt(wrong, rangeOf(wrong));
  return wrong === undefined;
}

function rangeOf({ type, min, max, validity }) {
  if (validity.stepMismatch) return t("field.whole");
  return type === "number" ? t("field.range", { min, max }) : t("field.missing");
}

/** Show what is wrong with a field, beside it; the section that it is in is opened. */
function pointAt(field, message) {
  for (let around = field.closest("details"); around; around = around.parentElement.closest("details")) around.open = true;
  const note = make("small", { id: `${field.id}-wrong`, className: "wrong", textContent: message });
  field.after(note);
  field.setAttribute("aria-invalid", "true");
  field.setAttribute("aria-describedby", note.id);
  field.addEventListener("input", () => clearPoints(field.form), { once: true });
  field.focus();
}

function clearPoints(form) {
  for (const note of form.querySelectorAll(".wrong")) note.remove();
  for (const field of form.querySelectorAll("[aria-invalid]")) ["aria-invalid", "aria-describedby"].forEach((name) => field.removeAttribute(name));
}

/** Let a field hold at most as many tokens as the service takes; what nobody has entered is within it from the start. */
export function limitTokens(field, most) {
  field.max = most;
  if (!field.dataset.isOwn && field.valueAsNumber > most) field.value = most;
}

/** One piece of work at a time: what is begun anew stops what is under way. */
export class Task {
  /** place: where errors are shown, null: nowhere. onBusy(isBusy). form: whose fields are called PANE-NAME, so that an error can point at one. */
  constructor(place, onBusy, form = null) {
    Object.assign(this, { place, onBusy, form, controller: null });
  }

  /** work(signal) → anything; returns whether it came to its end. */
  async run(work) {
    this.stop();
    const controller = new AbortController();
    this.controller = controller;
    if (this.place !== null) showError(this.place, null);
    this.onBusy(true);
    try {
      await work(controller.signal);
      return true;
    } catch (error) {
      if (error.name !== "AbortError" && this.controller === controller) this.show(error, () => this.run(work));
      return false;
    } finally {
      if (this.controller === controller) {
        this.controller = null;
        this.onBusy(false);
      }
    }
  }

  show(error, retry) {
    if (this.place === null) return;
    showError(this.place, error, retry);
    const name = error.kind === "invalid" && /^(\w+)[:.[]/.exec(error.detail)?.[1];
    const field = name && this.form?.elements[`${this.form.id.replace("form", name)}`];
    if (field) pointAt(field, error.detail);
  }

  stop() {
    this.controller?.abort();
  }
}
