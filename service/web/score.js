// The Score pane: sentences ranked by probability, each word shaded by its surprisal, two of them side by side.

import { post } from "./api.js";
import { align } from "./align.js";
import { csvOf, download } from "./csv.js";
import { isEnd } from "./draft.js";
import { suggest } from "./examples.js";
import { fixed, onLanguage, t } from "./i18n.js";
import { byId, make, Task } from "./page.js";
import { keepField } from "./store.js";
import { drawLegend, isBlank, shade, shaded, textsOf } from "./tokens.js";

const ORDERS = {
  total: (sentence) => sentence.bits,
  per_char: (sentence) => sentence.bits_per_char ?? Infinity,
  perplexity: (sentence) => sentence.perplexity ?? Infinity,
  input: (sentence) => sentence.number,
};

let models = [];
let scored = null; // {model, sentences}
let begun = { key: "", results: [] }; // of sentences that are being scored in parts
const BYTES_OF_FIELDS = 1024; // of a body, beside its texts

export function startScore() {
  const task = new Task(byId("score-error"), (isBusy) => {
    byId("score-go").disabled = isBusy;
    byId("score-progress").textContent = "";
    byId("score-stop").disabled = !isBusy;
  }, byId("score-form"));
  byId("score-form").addEventListener("submit", (event) => {
    event.preventDefault();
    task.run(async (signal) => {
      scored = await scoreAll(signal);
      draw();
      byId("status").textContent = t("score.done", { sentences: scored.sentences.length });
    });
  });
  byId("score-stop").addEventListener("click", () => task.stop());
  byId("score-order").addEventListener("change", draw);
  byId("score-shade").addEventListener("change", () => {
    drawLegend(byId("score-legend"), byId("score-shade").value);
    draw();
  });
  for (const id of ["score-left", "score-right"]) byId(id).addEventListener("change", drawPair);
  byId("score-csv").addEventListener("click", () => download("meari-sentences.csv", csvOf(sentenceRows())));
  byId("score-csv-words").addEventListener("click", () => download("meari-words.csv", csvOf(wordRows())));
  byId("score-model").addEventListener("change", () => {
    suggestTexts();
    delete byId("score-end").dataset.isOwn;
    keepField("score-end", null);
    suggestEnd();
  });
  document.addEventListener("meari-pane", ({ detail }) => detail === "score" && suggestTexts());
  onLanguage(() => {
    drawLegend(byId("score-legend"), byId("score-shade").value);
    if (scored !== null) draw();
  });
}

export function offerScoreModels(found) {
  models = found;
  suggestTexts();
  suggestEnd();
}

const suggestTexts = () => suggest(byId("score-texts"), models.find((each) => each.name === byId("score-model").value), "score");

/** Whether the end counts: as the model's training text had ends or not, until somebody says something else. */
function suggestEnd() {
  const model = models.find((each) => each.name === byId("score-model").value);
  if (model !== undefined && !byId("score-end").dataset.isOwn) byId("score-end").checked = model.corpus.has_ends;
}

async function scoreAll(signal) {
  const texts = byId("score-texts").value.split("\n").filter((line) => line !== "" && !isBlank(line)); // each as it stands
  const model = byId("score-model").value;
  if (texts.length === 0) return { model, sentences: [] };
  const fields = { model, log_base: "2", words: true, tokens: true, add_end: byId("score-end").checked };
  const results = await inParts(fields, texts, signal);
  return { model, sentences: results.map((result, i) => ({ ...result, text: texts[i], number: i + 1, bits: -result.logprob, words: rowsOf(result), unknownId: models.find(({ name }) => name === model)?.tokenizer.unknown_id ?? null })) };
}

/** The results of all texts, by as many requests as the service's limits ask for. What a failure interrupts goes on
 * where it was when it is tried again. */
async function inParts(fields, texts, signal) {
  const key = JSON.stringify([fields, texts]);
  if (begun.key !== key) begun = { key, results: [] };
  const { limits } = models.find(({ name }) => name === fields.model) ?? { limits: {} };
  while (begun.results.length < texts.length) {
    const part = firstPart(texts.slice(begun.results.length), limits);
    const { results } = await post("score", { ...fields, texts: part }, signal);
    begun.results.push(...results);
    byId("status").textContent = byId("score-progress").textContent = t("score.part", { done: begun.results.length, sentences: texts.length });
  }
  const { results } = begun;
  begun = { key: "", results: [] };
  return results;
}

/** As many texts as one request may hold, at least one: what is too long alone, the service says itself. */
function firstPart(texts, { max_texts: maxTexts = 1, max_body_bytes: maxBytes = Infinity, max_text_chars: maxChars = Infinity }) {
  const encoder = new TextEncoder();
  let [bytes, chars] = [maxBytes - BYTES_OF_FIELDS, maxChars];
  const fits = (text) => (bytes -= encoder.encode(JSON.stringify(text)).length + 1) >= 0 && (chars -= [...text].length) >= 0;
  const count = texts.slice(0, maxTexts).findIndex((text) => !fits(text));
  return texts.slice(0, count < 0 ? maxTexts : Math.max(1, count));
}

/** The words in bits; the end of the text, which has no length, is one without a text. name: as a table has it. */
function rowsOf(result) {
  return result.words.map(({ text, logprob, start, end, unknown }) => ({ text: start === end ? null : text, name: text, bits: -logprob, unknown }));
}

function ranked() {
  const figure = ORDERS[byId("score-order").value];
  return [...scored.sentences].sort((one, other) => figure(one) - figure(other) || one.number - other.number);
}

function draw() {
  const sentences = ranked();
  byId("score-out").hidden = false;
  byId("score-none").hidden = sentences.length > 0;
  byId("score-some").hidden = sentences.length === 0;
  byId("score-list").replaceChildren(...sentences.map(sentenceItem));
  byId("score-pair").hidden = sentences.length < 2;
  for (const [id, place] of [["score-left", 0], ["score-right", 1]]) {
    byId(id).replaceChildren(...sentences.map((sentence, i) => make("option", { value: sentence.number, textContent: `${i + 1}. ${sentence.text}` })));
    if (sentences.length > 1) byId(id).value = String(sentences[place].number);
  }
  drawPair();
}

function sentenceItem(sentence) {
  const text = make("p", { className: "sentence" });
  if (byId("score-shade").value === "word") sentence.words.forEach((word, i) => text.append(i ? " " : "", wordElement(word)));
  else text.append(...tokenElements(sentence));
  const figures = [
    [t("score.total"), t("bits.of", { bits: fixed(sentence.bits) })],
    [t("score.perplexity"), sentence.perplexity === null ? "–" : fixed(sentence.perplexity)],
    [t("score.per_char"), sentence.bits_per_char === null ? "–" : fixed(sentence.bits_per_char, 3)],
    [t("score.tokens"), String(sentence.num_tokens)],
    ...(sentence.num_unknown ? [[t("score.unknown"), String(sentence.num_unknown)]] : []),
  ];
  const list = make("dl", { className: "numbers" }, ...figures.map(([name, value]) => make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value }))));
  return make("li", {}, text, list);
}

/** The tokens with the text between them. */
function tokenElements({ text, tokens, unknownId }) {
  const texts = textsOf(tokens, text);
  return tokens.map((token, i) => {
    const { id, logprob } = token;
    if (isEnd(token)) return Object.assign(shaded(t("token.end"), -logprob), { className: `token end-word ${shade(-logprob)}` });
    const element = shaded(texts[i], -logprob);
    if (id === unknownId) element.classList.add("unknown");
    if (texts[i] === "") element.classList.add("part");
    return element;
  });
}

function wordElement(word) {
  const element = shaded(word.text ?? t("token.end"), word.bits, "word");
  if (word.text === null) element.classList.add("end-word");
  if (word.unknown) element.append(make("small", { className: "unknown", textContent: t("token.unknown") }));
  element.append(make("small", { textContent: fixed(word.bits, 1) }));
  return element;
}

function drawPair() {
  const [left, right] = ["score-left", "score-right"].map((id) => scored.sentences.find(({ number }) => String(number) === byId(id).value));
  if (!left || !right) return;
  const rows = align(left.words, right.words).map((row) => pairRow(row));
  const total = pairRow({ left: { text: t("score.total"), bits: left.bits }, right: { text: t("score.total"), bits: right.bits } }, true);
  byId("score-rows").replaceChildren(...rows, total);
}

/** Two words, their bits, and how much more the right one costs. */
function pairRow({ left, right, isSame, isPrefix }, isTotal = false) {
  const difference = (right?.bits ?? 0) - (left?.bits ?? 0);
  const sign = difference > 0 ? "+" : "";
  const shown = (word) => {
    if (word === null) return make("td", { textContent: "–" });
    const name = word.text ?? t("token.end");
    return make("td", {}, isTotal ? name : shaded(name, word.bits, "word"), word.unknown ? make("small", { className: "unknown", textContent: t("token.unknown") }) : "");
  };
  const bits = (word) => make("td", { className: "number", textContent: word === null ? "" : fixed(word.bits) });
  const change = make("td", { className: "number", textContent: sign + fixed(difference) });
  const kind = isTotal ? "total" : isPrefix ? "prefix" : isSame ? "same" : "parted";
  return make("tr", { className: kind }, shown(left), bits(left), shown(right), bits(right), change);
}

function sentenceRows() {
  const head = ["rank", "number", "text", "model", "bits", "perplexity", "bits_per_char", "bits_per_byte", "tokens", "characters", "unknown_tokens"];
  return [head, ...ranked().map((each, i) => [
    i + 1, each.number, each.text, scored.model, each.bits, each.perplexity, each.bits_per_char, each.bits_per_byte, each.num_tokens, each.num_chars, each.num_unknown,
  ])];
}

function wordRows() {
  const rows = ranked().flatMap((each, i) => each.words.map((word, place) => [i + 1, each.number, place + 1, word.name, word.bits, String(word.unknown)]));
  return [["rank", "number", "place", "word", "bits", "unknown"], ...rows];
}
