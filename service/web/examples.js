// What the panes begin with: by the corpus that a model was trained on, in that corpus's language; for any other model a
// line that it writes itself.

import { post } from "./api.js";

const EXAMPLES = {
  nsmc: {
    language: "ko",
    seed: 35,
    write: "이 영화는",
    type: "이 영화 정말 재",
    score: "정말 재미있는 영화였다\n정말 재미있는 영하였다\n영화 재미있는 정말였다",
    compare: "이 영화는 정말",
  },
  tinyshakespeare: {
    language: "en",
    seed: 10,
    write: "ROMEO:\n",
    type: "To be, or not to b",
    score: "To be, or not to be: that is the question.\nTo be, or not too bee: that is the question.\nQuestion the is that: be to not or, be to.",
    compare: "ROMEO:\nThe night is long, and all the bells are still.\n",
  },
  books: {
    language: "en",
    seed: 14,
    write: "The weather",
    type: "The wea",
    score: "He was very glad to see me.\nHe was very glad too see me.\nSee me very to glad was he.",
    compare: "It was late in the evening, and",
  },
};

/** The text that a pane begins with, or the seed of the first text; empty where the corpus is another one. */
export const exampleOf = (model, pane) => EXAMPLES[model.corpus.name]?.[pane] ?? "";

const LINE = { prompt: "", max_tokens: 40, temperature: 0.8, seed: 7 };
const lines = new Map(); // of models without a prepared text: name → promise of a line

/** The first line that a model writes, or "" if the service does not answer now. */
export function lineOf({ name, limits }) {
  if (!lines.has(name)) {
    const asked = post("generate", { ...LINE, model: name, max_tokens: Math.min(LINE.max_tokens, limits.max_tokens) });
    lines.set(name, asked.then(({ choices }) => choices[0].text.split("\n").find((line) => line.trim())?.trim() ?? ""));
  }
  return lines.get(name).catch(() => (lines.delete(name), ""));
}

/** Fill a field that nobody has changed with the text that its pane begins with; a model writes its own once it is seen. */
export async function suggest(field, model, pane) {
  if (model === undefined || field.dataset.isOwn) return;
  field.value = exampleOf(model, pane);
  field.dataset.of = model.name;
  if (field.value !== "" || field.closest("section").hidden) return;
  const line = await lineOf(model);
  if (field.value === "" && field.dataset.of === model.name && !field.dataset.isOwn) field.value = line;
}

/** The model to begin with: the service's default, unless that is known to be of another language than the page. */
export function firstModel(models, name, language) {
  const languageOf = (model) => EXAMPLES[model?.corpus.name]?.language;
  const first = models.find((model) => model.name === name) ?? models[0];
  return [undefined, language].includes(languageOf(first)) ? first : (models.find((model) => languageOf(model) === language) ?? first);
}
