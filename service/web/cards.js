// What the service says of a model, in one line: corpus, held-out figure, size, date.

import { day, fixed, number, onLanguage, t } from "./i18n.js";
import { byId } from "./page.js";

let models = new Map();

/** found: as GET /models gives them. */
export function offerCards(found) {
  models = new Map(found.map((model) => [model.name, model]));
  drawCards();
}

export function startCards() {
  for (const card of document.querySelectorAll("[data-card]")) byId(card.dataset.card).addEventListener("change", drawCards);
  onLanguage(drawCards);
}

function drawCards() {
  for (const card of document.querySelectorAll("[data-card]")) {
    const model = models.get(byId(card.dataset.card).value);
    card.textContent = model ? describe(model) : "";
  }
}

/** Parts that a bundle does not have are left out. */
function describe({ corpus, family, precision, sizes, graphs, figures }) {
  const bytes = Object.values(graphs).reduce((sum, graph) => sum + graph.bytes, 0);
  const parts = [
    corpus.name && t(corpus.licence ? "card.corpus" : "card.corpus.only", corpus),
    heldOut(figures),
    t("card.size", { family: family.toUpperCase(), parameters: parametersOf(sizes), megabytes: fixed(bytes / 1e6, 1), precision }),
    figures?.training_ended && t("card.date", { date: day(figures.training_ended) }),
  ];
  return parts.filter(Boolean).join(" · ");
}

/** From a million on in millions: a small model has no "0.0 M". */
const parametersOf = ({ parameters }) =>
  parameters < 1e6 ? t("card.parameters.few", { parameters: number(parameters) }) : t("card.parameters", { millions: fixed(parameters / 1e6, 1) });

/** The figure of the text that was held out, or null. */
export function heldOut(figures) {
  const part = figures?.reported_part ?? "validation";
  const bits = figures?.[part]?.bits_per_char;
  return typeof bits === "number" ? t(`card.${part === "test" ? "test" : "validation"}`, { bits: fixed(bits, 3) }) : null;
}

/** A model's family and size, for where there is little room. */
export const brief = ({ family, sizes, figures }) => [family.toUpperCase(), parametersOf(sizes), heldOut(figures)].filter(Boolean).join(" · ");
