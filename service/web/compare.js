// The Compare pane: one prompt through several models at once; their text, surprisal, speed, and states over time.

import { post, stream } from "./api.js";
import { brief } from "./cards.js";
import { bitsOf, withShownText } from "./draft.js";
import { drawChart } from "./chart.js";
import { echoOf, halfLife, sharesOf } from "./echo.js";
import { suggest } from "./examples.js";
import { arranged, columnAt, drawHeatMap } from "./heatmap.js";
import { fixed, number, onLanguage, t } from "./i18n.js";
import { byId, isFilled, limitTokens, make, Task } from "./page.js";
import { keepField, keptValue } from "./store.js";
import { drawLegend, shaded, textsOf, visible } from "./tokens.js";

const FAMILIES = ["rnn", "gru", "lstm", "esn"];
const MAX_STATES = 256; // tokens that /states takes
const MAX_WRITTEN = 1000; // tokens of a continuation
const UNITS = 64;

let models = [];
let runs = [];
let at = 0; // the token that is looked at

export function startCompare() {
  const task = new Task(byId("compare-error"), (isBusy) => {
    byId("compare-go").disabled = isBusy;
    byId("compare-stop").disabled = !isBusy;
    byId("compare-out").setAttribute("aria-busy", String(isBusy));
  }, byId("compare-form"));
  byId("compare-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const names = chosenModels();
    byId("compare-none").hidden = names.length > 0;
    if (names.length > 0 && isFilled(event.target)) task.run((signal) => runAll(names, signal));
  });
  byId("compare-stop").addEventListener("click", () => task.stop());
  byId("compare-at").addEventListener("input", ({ target }) => lookAt(target.valueAsNumber));
  byId("compare-models").addEventListener("change", () => {
    keepField("compare-models", chosenModels());
    suggestPrompt();
  });
  byId("compare-echo").addEventListener("click", () => task.run((signal) => showEchoes(signal)));
  byId("compare-back").addEventListener("click", () => showStates());
  document.addEventListener("meari-pane", ({ detail }) => detail === "compare" && suggestPrompt());
  const repaint = () => runs.forEach(paint);
  byId("theme").addEventListener("change", repaint);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  onLanguage(() => {
    drawLegend(byId("compare-legend"));
    if (runs.length > 0) draw();
  });
}

const chosenModels = () => [...document.querySelectorAll("#compare-models input:checked")].map(({ value }) => value);

/** Choose from the start the models of one corpus and tokenizer that are of the most families. */
export function offerCompareModels(found) {
  limitTokens(byId("compare-max_tokens"), Math.min(MAX_WRITTEN, ...found.map(({ limits }) => limits.max_tokens)));
  models = [...found].sort((one, other) => FAMILIES.indexOf(one.family) - FAMILIES.indexOf(other.family));
  const groups = Map.groupBy ? Map.groupBy(models, kinOf) : groupBy(models, kinOf);
  const largest = [...groups.values()].reduce((best, group) => (familiesOf(group) > familiesOf(best) ? group : best), []);
  const kept = [keptValue("compare-models")].flat();
  const isChosen = (model) => (models.some(({ name }) => kept.includes(name)) ? kept.includes(model.name) : largest.includes(model));
  byId("compare-models").replaceChildren(
    ...models.map((model) =>
      make("label", { className: "check" }, make("input", { type: "checkbox", value: model.name, checked: isChosen(model) }), make("span", { textContent: model.name }), make("small", { textContent: brief(model) })),
    ),
  );
  suggestPrompt();
}

const kinOf = ({ corpus, tokenizer }) => `${corpus.name} ${tokenizer.kind} ${tokenizer.vocabulary_size}`;
const familiesOf = (group) => new Set(group.map(({ family }) => family)).size;

function groupBy(list, key) {
  const groups = new Map();
  for (const each of list) groups.set(key(each), [...(groups.get(key(each)) ?? []), each]);
  return groups;
}

function suggestPrompt() {
  const first = document.querySelector("#compare-models input:checked")?.value;
  suggest(byId("compare-prompt"), models.find(({ name }) => name === first), "compare");
}

async function runAll(names, signal) {
  const prompt = byId("compare-prompt").value.normalize("NFC"); // as every model reads it: tokens are looked for in this form
  const request = { prompt, max_tokens: byId("compare-max_tokens").valueAsNumber, temperature: byId("compare-temperature").valueAsNumber, seed: byId("compare-seed").valueAsNumber };
  runs = names.map((name) => ({ model: models.find((each) => each.name === name), prompt, tokens: [], text: "", seconds: 0, scored: null, states: null, tensor: 0 }));
  at = 0;
  byId("compare-back").hidden = true;
  byId("compare-out").hidden = false;
  draw();
  await Promise.all(runs.map((run) => writeOne(run, request, signal)));
  await Promise.all(runs.map((run) => measureOne(run, signal)));
  draw();
  await measureEchoes(at, signal);
  byId("status").textContent = t("compare.done", { models: runs.length });
}

const unknownOf = (run) => run.model.tokenizer.unknown_id ?? null;

/** The continuation, with the time that it took from the request to its last token. */
async function writeOne(run, request, signal) {
  const began = performance.now();
  for await (const event of stream("generate", { ...request, model: run.model.name, logprobs: 0 }, signal)) {
    for (const choice of event.choices) {
      run.tokens.push(...withShownText(choice.tokens ?? [], choice.text, unknownOf(run)));
      run.text += choice.text;
      run.seconds = (performance.now() - began) / 1000;
      run.show?.();
    }
  }
}

/** The prompt's surprisal, and the states over as much of the whole text as may be asked for. */
async function measureOne(run, signal) {
  const model = run.model.name;
  const { results } = await post("score", { model, text: run.prompt, log_base: "2", tokens: true, add_end: false }, signal);
  run.scored = results[0];
  const known = run.scored.tokens.slice(0, MAX_STATES);
  const prompt = [...run.prompt].slice(0, known.at(-1)?.end ?? 0).join("");
  const rest = known.length < run.scored.tokens.length ? [] : run.tokens.slice(0, MAX_STATES - known.length);
  const unknown = run.tokens.find(({ id }) => id === unknownOf(run))?.text ?? "\ufffd"; // whose name would be several tokens
  run.states = await post("states", { model, text: prompt + rest.map(({ shown }) => shown).join("").replaceAll(unknown, "\ufffd"), units: UNITS }, signal);
  const first = (kind) => run.states.tensors.findIndex(({ name }) => kind.test(name));
  run.tensor = Math.max(0, first(/^c\d/) < 0 ? first(/^[sh]\d/) : first(/^c\d/)); // of an LSTM what its gates hold
  run.columns = placed(withShownText(run.states.tokens, run.prompt + run.text, unknownOf(run)).map(({ shown }) => ({ text: shown })));
  run.seam = run.columns.filter(({ start }) => start < run.prompt.length).length;
  run.pictures = run.states.tensors.map(({ values }) => arranged(values));
}

/** What a token has left in the states of each model, for the chart. */
async function measureEchoes(place, signal) {
  const known = runs.filter((run) => run.states?.tokens[place]);
  const echoes = await Promise.all(known.map((run) => echoOf(run.states, place, UNITS, signal, run.model.tokenizer)));
  known.forEach((run, i) => (run.measured = { place, pictures: echoes[i].map((values, tensor) => ({ ...arranged(values), order: run.pictures[tensor].order })) }));
  drawEchoes();
}

/** All models in one chart; of each the state tensor that its heat map shows. */
function drawEchoes() {
  const known = runs.filter((run) => run.measured);
  byId("compare-chart").hidden = known.length === 0;
  if (known.length === 0) return;
  const { place } = known[0].measured;
  const lines = known.map((run) => {
    const { values } = run.measured.pictures[run.tensor];
    const half = halfLife(values, place);
    return { name: `${run.model.name} · ${run.states.tensors[run.tensor].name}`, note: half === null ? t("echo.stays") : t("echo.half", { half }), shares: sharesOf(values, place) };
  });
  const title = t("echo.title", { place: place + 1, token: visible(known[0].states.tokens[place]) });
  byId("compare-chart-title").textContent = title;
  drawChart(byId("compare-chart-lines"), lines, place + 1, { name: title, x: t("echo.x"), y: t("echo.y") });
}

/** In place of the states, what the token that is looked at has left in them. */
async function showEchoes(signal) {
  await measureEchoes(at, signal);
  for (const run of runs) run.echo = run.measured;
  byId("compare-back").hidden = false;
  runs.forEach(paint);
  byId("status").textContent = t("compare.echo.done");
}

function showStates() {
  for (const run of runs) run.echo = null;
  byId("compare-back").hidden = true;
  runs.forEach(paint);
}

function draw() {
  byId("compare-cards").replaceChildren(...runs.map(card));
  byId("compare-rows").replaceChildren(...runs.map(row));
  const num = Math.max(0, ...runs.map((run) => run.states?.tokens.length ?? 0));
  byId("compare-time").hidden = num === 0;
  byId("compare-at").max = String(Math.max(0, num - 1));
  drawEchoes();
  lookAt(at);
}

const speedOf = (run) => (run.seconds > 0 ? run.tokens.length / run.seconds : 0);
/** A character's, since models of different tokenizers have no other measure in common. */
const bitsEach = (run) => run.tokens.reduce((sum, token) => sum + bitsOf(token.logprob), 0) / Math.max(1, [...run.text].length);

function row(run) {
  const scored = run.scored?.bits_per_char ?? null;
  return make("tr", {}, make("th", { scope: "row", textContent: run.model.name }), ...cells(run, scored));
}

function cells(run, scored) {
  const move = run.pictures?.[run.tensor]?.move;
  const texts = [run.model.family.toUpperCase(), number(run.model.sizes.parameters), scored === null ? "…" : fixed(scored), fixed(bitsEach(run)), fixed(speedOf(run), 0), move === undefined ? "…" : fixed(move)];
  return texts.map((text, i) => make("td", { className: i ? "number" : "", textContent: text }));
}

function card(run) {
  const text = make("div", { className: "text small", tabIndex: 0, role: "listbox", "aria-orientation": "horizontal", "aria-label": t("compare.text", { model: run.model.name }), onkeydown: step });
  text.addEventListener("pointerover", ({ target }) => {
    const option = target.closest("[data-index]");
    if (option) lookAt(columnOf(run, run.options[option.dataset.index].start));
  });
  run.box = text;
  const figures = make("p", { className: "figures" });
  run.show = () => {
    const own = run.tokens.map(({ shown, logprob }) => ({ text: shown, bits: bitsOf(logprob) }));
    const before = run.scored ? scoredPieces(run.scored.tokens, run.prompt) : [];
    run.options = placed([...before, ...own]);
    const spans = run.options.map((piece, i) => option(run, piece, i));
    const prompt = run.scored ? spans.slice(0, before.length) : [make("span", { className: "prompt", role: "presentation", textContent: run.prompt })];
    text.replaceChildren(...prompt, make("span", { className: "seam", role: "presentation" }), ...spans.slice(before.length));
    figures.textContent = t("compare.figures", { speed: fixed(speedOf(run), 0), bits: fixed(bitsEach(run)) });
  };
  run.show();
  return make("article", { className: "card" }, make("h3", { textContent: `${run.model.name} · ${run.model.family.toUpperCase()}` }), figures, text, run.pictures?.length ? picture(run) : null);
}

/** The tokens of a scored text with the characters that they stand for. */
function scoredPieces(tokens, text) {
  const texts = textsOf(tokens, text);
  return tokens.map(({ logprob }, i) => ({ text: texts[i], bits: -logprob }));
}

/** Pieces of a text, each with the place of its first character. */
function placed(pieces) {
  let end = 0;
  return pieces.map((piece) => ({ ...piece, start: end, end: (end += piece.text.length) }));
}

function option(run, { text, bits }, index) {
  const element = shaded(text, bits);
  element.id = `compare-${runs.indexOf(run)}-${index}`;
  element.setAttribute("role", "option");
  element.setAttribute("aria-selected", "false");
  element.dataset.index = index;
  return element;
}

/** The column of the heat map, a token of the text as it was read, in which a character is. */
function columnOf(run, character) {
  const at = run.columns?.findLastIndex(({ start }) => start <= character) ?? -1;
  return Math.max(0, at);
}

/** Arrow keys go through the tokens, in a text and in a heat map. */
function step(event) {
  const last = byId("compare-at").max;
  const places = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: Number(last) };
  if (!(event.key in places)) return;
  event.preventDefault();
  lookAt(Math.min(places[event.key], last));
}

/** Mark the tokens in a text that the column which is looked at stands for. */
function markText(run) {
  const column = run.columns?.[at];
  if (!run.box || !column) return;
  let first = null;
  for (const element of run.box.querySelectorAll("[data-index]")) {
    const { start, end } = run.options[element.dataset.index];
    const isIn = start < Math.max(column.end, column.start + 1) && Math.max(end, start + 1) > column.start;
    element.setAttribute("aria-selected", String(isIn));
    if (isIn) first ??= element;
  }
  run.box.setAttribute("aria-activedescendant", first?.id ?? "");
}

/** The heat map of one state tensor, with a choice where a model has several. */
function picture(run) {
  const { tensors, tokens } = run.states;
  run.canvas = make("canvas", { className: "heat", role: "img" });
  run.note = make("p", { className: "figures" });
  run.canvas.addEventListener("pointermove", (event) => lookAt(Math.min(tokens.length - 1, columnAt(run.canvas, event))));
  const select = make("select", { onchange: ({ target }) => ((run.tensor = target.selectedIndex), paint(run), drawEchoes()) }, ...tensors.map(({ name }) => make("option", { textContent: name })));
  select.selectedIndex = run.tensor;
  const label = make("label", {}, `${t("compare.tensor")} `, select);
  run.scale = make("p", { className: "heat-legend" });
  const scroll = make("div", { className: "scroll", tabIndex: 0, role: "group", "aria-label": t("compare.heat.scroll", { model: run.model.name }), onkeydown: step }, run.canvas, axisOf(run));
  const units = make("span", { className: "axis-y", textContent: t("compare.axis.units") });
  return make("div", {}, make("div", { className: "heat-head" }, label, run.scale), make("div", { className: "heat-frame" }, units, scroll), run.note);
}

/** Under the heat map: the number of the first and the last token, and where the prompt is at its end. */
function axisOf({ columns, seam }) {
  const axis = make("div", { className: "axis-x" }, make("span", { textContent: t("compare.axis.token", { number: 1 }) }));
  if (seam > 0 && seam < columns.length) {
    const end = make("span", { className: "axis-seam", textContent: t("compare.axis.prompt", { number: seam }) });
    end.style.setProperty("--at", `${(100 * seam) / columns.length}%`);
    axis.append(end);
  }
  axis.append(make("span", { textContent: number(columns.length) }));
  return axis;
}

function lookAt(place) {
  at = Math.max(0, place);
  byId("compare-at").value = String(at);
  const token = runs.find((run) => run.states?.tokens[at])?.states.tokens[at];
  byId("compare-at-token").textContent = token ? `${number(at + 1)}: ${visible(token)}` : "";
  for (const run of runs) {
    paint(run);
    markText(run);
  }
}

function paint(run) {
  if (!run.pictures?.length || !run.canvas) return;
  const image = (run.echo?.pictures ?? run.pictures)[run.tensor];
  const place = Math.min(at, image.values.length - 1);
  drawHeatMap(run.canvas, image, place, run.seam);
  const [low, high] = run.echo ? [number(0), fixed(image.full)] : [`−${fixed(image.full)}`, `+${fixed(image.full)}`];
  run.scale.replaceChildren(low, make("span", { className: run.echo ? "scale half" : "scale" }), high);
  const text = run.echo ? echoText(run, image) : stateText(run, image, place);
  run.note.textContent = text;
  run.canvas.setAttribute("aria-label", t("compare.heat", { name: run.states.tensors[run.tensor].name, tokens: image.values.length, text }));
}

function stateText(run, image, place) {
  const { size, units } = run.states.tensors[run.tensor];
  const mean = image.values[place].reduce((sum, value) => sum + Math.abs(value), 0) / units.length;
  return t("compare.note", { units: units.length, size, full: fixed(image.full), move: fixed(image.move), mean: fixed(mean) });
}

function echoText(run, image) {
  const { place } = run.echo;
  const half = halfLife(image.values, place);
  const values = { place: place + 1, token: visible(run.states.tokens[place]), half: half ?? 0, full: fixed(image.full) };
  return t(half === null ? "compare.echo.stays" : "compare.echo.note", values);
}
