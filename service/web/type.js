// The Type pane: likely ways to go on while somebody types; Tab, or an arrow and Enter, takes one.

import { post } from "./api.js";
import { onLanguage, percent, t } from "./i18n.js";
import { exampleOf } from "./examples.js";
import { byId, make, Task } from "./page.js";
import { keepField } from "./store.js";

const PAUSE_MILLISECONDS = 60; // without a key before the service is asked

let models = [];
let found = []; // completions of the text before the caret
let asked = ""; // the text that they go on from
let chosen = -1; // number of the one that Enter takes
let milliseconds = 0;

export function startType() {
  const area = byId("type-text");
  const task = new Task(byId("type-error"), (isBusy) => byId("type-list").setAttribute("aria-busy", String(isBusy)));
  let pause = 0;

  const textBefore = () => area.value.slice(0, area.selectionStart);
  const ask = () =>
    task.run(async (signal) => {
      const begun = performance.now();
      asked = textBefore();
      const { completions } = await post("complete", { model: byId("type-model").value, text: asked, n: 5, composing: true }, signal);
      milliseconds = performance.now() - begun;
      show(completions);
    });
  const leave = () => {
    task.stop();
    clearTimeout(pause);
  };
  const askSoon = () => {
    leave();
    asked = textBefore();
    found = []; // they are those of another text; they stay in sight until the next ones come
    byId("type-list").dataset.isOld = "yes";
    choose(-1);
    pause = setTimeout(ask, PAUSE_MILLISECONDS);
  };
  const take = (place) => {
    const { text, replaces } = found[place];
    const before = [...textBefore()];
    const kept = before.slice(0, before.length - replaces).join("");
    area.setRangeText(text, kept.length, area.selectionEnd, "end");
    area.dataset.isOwn = "yes";
    keepField("type-text", area.value);
    area.focus();
    byId("status").textContent = t("type.taken", { text });
    askSoon();
  };

  area.addEventListener("input", askSoon);
  area.addEventListener("click", askSoon);
  area.addEventListener("focus", askSoon);
  document.addEventListener("selectionchange", () => document.activeElement === area && textBefore() !== asked && askSoon());
  area.addEventListener("keydown", (event) => {
    if (event.isComposing || event.shiftKey || event.ctrlKey || event.altKey || event.metaKey) return;
    if (found.length === 0 || textBefore() !== asked) return;
    const isAtEnd = area.selectionStart === area.value.length;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && isAtEnd && (chosen >= 0 || step > 0)) choose(chosen + step);
    else if (event.key === "Tab" || (event.key === "Enter" && chosen >= 0)) take(Math.max(chosen, 0));
    else if (event.key === "Escape") {
      leave();
      show([]);
    } else return;
    event.preventDefault();
  });
  byId("type-list").addEventListener("click", ({ target }) => {
    const row = target.closest("li");
    if (row !== null && found.length > 0) take(Number(row.dataset.place));
  });
  byId("type-model").addEventListener("change", () => {
    suggestText();
    askSoon();
  });
  document.addEventListener("meari-pane", ({ detail }) => {
    if (detail === "type" && models.length > 0) askSoon();
  });
  onLanguage(() => show(found));
}

/** models: as GET /models gives them. */
export function offerTypeModels(offered) {
  models = offered;
  suggestText();
}

function suggestText() {
  const area = byId("type-text");
  const model = models.find((each) => each.name === byId("type-model").value);
  if (model === undefined || area.dataset.isOwn) return;
  area.value = exampleOf(model, "type");
  area.setSelectionRange(area.value.length, area.value.length);
}

function show(completions) {
  found = completions;
  delete byId("type-list").dataset.isOld;
  byId("type-list").replaceChildren(...completions.map(row));
  byId("type-figures").textContent = completions.length ? t("type.figures", { milliseconds: Math.max(1, Math.round(milliseconds)) }) : "";
  choose(-1);
}

/** Mark the one that Enter takes; -1 for none. */
function choose(place) {
  chosen = Math.min(place, found.length - 1);
  byId("type-list").childNodes.forEach((each, at) => each.setAttribute("aria-selected", String(at === chosen)));
  if (chosen < 0) byId("type-text").removeAttribute("aria-activedescendant");
  else byId("type-text").setAttribute("aria-activedescendant", `type-option-${chosen}`);
}

function row({ text, probability }, place) {
  const bar = make("span", { className: "bar" });
  bar.style.setProperty("--share", `${(100 * probability).toFixed(2)}%`);
  return make(
    "li",
    { id: `type-option-${place}`, role: "option", "data-place": place, "aria-selected": "false", "aria-label": t("type.option", { text, share: percent(probability) }) },
    make("span", { className: "name", textContent: text.replaceAll("\n", "↵").replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length)) }),
    bar,
    make("span", { className: "share", textContent: percent(probability) }),
  );
}
