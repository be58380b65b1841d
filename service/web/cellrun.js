// A drawn cell at work: a loaded model of its family reads a text, token by token, with the numbers of a few of its units.
// The numbers, gates included, are those of POST /states and POST /score.

import { post } from "./api.js";
import { exampleOf, lineOf } from "./examples.js";
import { fixed, onLanguage, percent, t } from "./i18n.js";
import { byId, make, Task } from "./page.js";
import { visible } from "./tokens.js";

const UNITS = 8;
const NUM_NEXT = 5;
/** Of each family its rows in the order in which a step computes them: old state, gates and candidate, new state. */
const ROWS = {
  rnn: ["h−", "h"],
  gru: ["h−", "r", "n", "z", "h"],
  lstm: ["c−", "h−", "f", "i", "g", "c", "o", "h"],
  esn: ["s−", "s"],
};
const GATES = "rzifo"; // the others of a step lie between −1 and 1

/** One card's runner; family: as models have it. */
class CellRun {
  constructor(place, family) {
    Object.assign(this, { place, family, model: null, answer: null, at: 0 });
    this.select = make("select", { onchange: () => this.choose(this.select.value) });
    this.text = make("input", { type: "text", maxLength: 120, spellcheck: false, onchange: () => this.read() });
    this.back = make("button", { type: "button", className: "small", textContent: "◂", onclick: () => this.go(this.at - 1) });
    this.next = make("button", { type: "button", className: "small", textContent: "▸", onclick: () => this.go(this.at + 1) });
    this.token = make("output", {});
    this.table = make("tbody", {});
    this.likely = make("p", { className: "figures likely" });
    this.note = make("p", { className: "figures" });
    const error = make("div", { className: "error", role: "alert" });
    this.task = new Task(error, () => {});
    this.names = { heading: make("h3", {}), model: make("span", {}), text: make("span", {}) };
    this.scroll = make("div", { className: "scroll", tabIndex: 0, role: "group" }, make("table", { className: "units" }, this.table));
    place.replaceChildren(
      this.names.heading,
      make("div", { className: "controls" }, make("label", { className: "wide" }, this.names.model, this.select), make("label", { className: "wide" }, this.names.text, this.text)),
      make("div", { className: "actions" }, this.back, this.next, this.token),
      this.scroll,
      this.likely,
      this.note,
      error,
    );
  }

  offer(models) {
    const own = models.filter(({ family }) => family === this.family);
    this.models = own;
    this.place.hidden = own.length === 0;
    this.select.replaceChildren(...own.map(({ name }) => make("option", { textContent: name })));
    if (own.length > 0 && !own.some(({ name }) => name === this.model?.name)) this.model = own.find(({ name }) => name === byId("write-model").value) ?? own[0];
    if (this.model) this.select.value = this.model.name;
    this.isDue = own.length > 0;
  }

  choose(name) {
    this.model = this.models.find((model) => model.name === name);
    this.text.value = "";
    this.read();
  }

  /** Ask once the pane is seen, and when something else is to be read. */
  read() {
    this.isDue = false;
    const example = exampleOf(this.model, "compare");
    if (this.text.value === "") this.text.value = example.split("\n").at(-2) ?? example;
    const model = this.model.name;
    this.task.run(async (signal) => {
      const text = this.text.value || (await lineOf(this.model));
      signal.throwIfAborted();
      this.text.value = text;
      const [states, scores] = await Promise.all([
        post("states", { model, text, units: UNITS, gates: true }, signal),
        post("score", { model, text, tokens: true, top: NUM_NEXT, add_end: true }, signal),
      ]);
      this.answer = { states, tokens: scores.results[0].tokens };
      this.go(0);
    });
  }

  go(at) {
    this.at = Math.max(0, Math.min(at, this.answer.states.tokens.length - 1));
    this.draw();
  }

  draw() {
    this.names.heading.textContent = t("run.heading");
    this.names.model.textContent = t("model");
    this.names.text.textContent = t("type.text");
    this.scroll.setAttribute("aria-label", t("run.table"));
    this.back.setAttribute("aria-label", t("run.back"));
    this.next.setAttribute("aria-label", t("run.next"));
    if (this.answer === null) return;
    const { states, tokens } = this.answer;
    const num = states.tokens.length;
    [this.back.disabled, this.next.disabled] = [this.at === 0, this.at >= num - 1];
    if (num === 0 || firstLayer(states).length === 0) return;
    this.token.textContent = t("run.token", { place: this.at + 1, num, token: visible(states.tokens[this.at]) });
    this.table.replaceChildren(...this.rows(states));
    const next = tokens[this.at + 1]?.top ?? [];
    this.likely.replaceChildren(sign("y", "t"), " ", next.map((each) => `${visible(each)} ${percent(Math.exp(each.logprob))}`).join(" · "));
    const { units, size } = firstLayer(states)[0];
    this.note.textContent = t(`run.note.${this.family}`, { units: units.length, size });
  }

  /** Head, then a row each of the first layer's state before and after the token, and of the gates between them. */
  rows({ tensors, gates }) {
    const { units } = firstLayer({ tensors })[0];
    const head = make("tr", {}, make("th", { scope: "col", textContent: t("run.unit") }), ...units.map((unit) => make("th", { scope: "col", className: "number", textContent: String(unit) })));
    const found = Object.fromEntries([...tensors, ...gates].map(({ name, values }) => [name, values]));
    const known = ROWS[this.family].filter((name) => `${name[0]}0` in found);
    return [head, ...known.map((name) => row(nameOf(name), found[`${name[0]}0`][name.endsWith("−") ? this.at - 1 : this.at] ?? null))];
  }
}

const firstLayer = ({ tensors }) => tensors.filter(({ name }) => /^[shc]0$/.test(name));

const sign = (name, index) => make("span", { className: "sign" }, name, make("sub", { textContent: index }));
const nameOf = (name) => (GATES.includes(name) ? make("span", { className: "gate-name" }, sign(name, "t")) : sign(name[0], name.endsWith("−") ? "t−1" : "t"));

/** Numbers with a bar each, from −1 to 1; values null: before the first token only the end of a text was read. */
function row(name, values) {
  const cell = (value) => {
    const element = make("td", { className: "number", textContent: value === null ? "–" : fixed(value) });
    if (value !== null) element.style.setProperty("--value", String(Math.max(-1, Math.min(1, value))));
    return element;
  };
  return make("tr", {}, make("th", { scope: "row" }, name), ...(values ?? Array(UNITS).fill(null)).map(cell));
}

let runners = [];

export function startCellRuns() {
  runners = [...document.querySelectorAll("[data-run]")].map((place) => new CellRun(place, place.dataset.run));
  document.addEventListener("meari-pane", readDue);
  onLanguage(() => runners.forEach((runner) => runner.draw()));
}

export function offerCellRuns(models) {
  for (const runner of runners) runner.offer(models);
  readDue();
}

function readDue() {
  if (byId("pane-learn").hidden) return;
  for (const runner of runners) if (runner.isDue) runner.read();
}
