// The Write pane: a prompt, its continuation as it comes, alternatives at every token, and the same text again.

import { post } from "./api.js";
import { bitsOf, Draft, isEnd } from "./draft.js";
import { exampleOf } from "./examples.js";
import { fixed, onLanguage, percent, t } from "./i18n.js";
import { readLink } from "./link.js";
import { byId, isFilled, limitTokens, make, Task } from "./page.js";
import { openLink, showShare, startShare } from "./share.js";
import { keepField } from "./store.js";
import { TokenList, drawLegend, spoken, visible } from "./tokens.js";

const SAMPLING = ["temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed"];
const EXAMPLE = { seed: 7, tokens: 120 };

let models = [];
let draft = null;
let shown = null; // number of the token whose alternatives are shown
let showExample = () => {};
let openRecipe = () => {};
let isOpened = false; // the link that the page was opened with
let outcome = ""; // what the last task came to

export function startWrite() {
  const task = new Task(byId("write-error"), (isBusy) => {
    showBusy(isBusy);
    if (isBusy) say(t("write.busy"));
    else if (draft !== null) {
      redraw();
      say(summary());
    }
  }, byId("write-form"));
  const list = new TokenList(byId("write-tokens"), { onShow: showAlternatives, onEnter: () => byId("alternatives").querySelector("button")?.focus() });
  const redraw = () => {
    const isSame = byId("write-prompt-shown").textContent === draft.prompt;
    if (!isSame) byId("write-prompt-shown").textContent = draft.prompt;
    list.update(draft.tokens);
    showFigures();
  };
  const begin = (key, work) => (...values) =>
    task.run(async (signal) => {
      outcome = "";
      await work(signal, ...values);
      outcome = key;
    });
  /** The text before stays until the next one has begun. */
  const adopt = (next, show) => {
    if (draft !== next) hideAlternatives();
    draft = next;
    show();
  };
  const example = new Task(null, () => {});
  showExample = () => {
    if (draft !== null || byId("write-prompt").dataset.isOwn || byId("pane-write").hidden) return;
    example.run(async (signal) => {
      const model = byId("write-model").value;
      const [prompt, seed] = ["write", "seed"].map((name) => exampleOf(modelNamed(model), name));
      const next = new Draft(model, prompt, { temperature: 0.8, seed: seed || EXAMPLE.seed });
      await next.more(Math.min(EXAMPLE.tokens, modelNamed(model).limits.max_tokens), signal);
      if (signal.aborted) return;
      next.onChange = frames(redraw);
      adopt(next, redraw);
      showBusy(false);
    });
  };
  document.addEventListener("meari-pane", () => models.length > 0 && showExample());
  const maxTokens = () => byId("write-max_tokens").valueAsNumber;

  const write = begin("done", async (signal, recipe = { tokens: maxTokens(), picks: [] }) => {
    example.stop();
    const next = new Draft(byId("write-model").value, byId("write-prompt").value, sampling());
    const show = frames(redraw);
    next.onChange = () => next.tokens.length > 0 && adopt(next, show);
    await next.replay(recipe.tokens, recipe.picks, modelNamed(next.model)?.limits.max_tokens ?? maxTokens(), signal);
    adopt(next, show);
    await markUnknown(next, signal);
  });
  const more = begin("done", (signal) => draft.more(maxTokens(), signal));
  const choose = begin("done", (signal, index, alternative) => draft.choose(index, alternative, maxTokens(), signal));
  const again = begin("same", async (signal) => {
    hideAlternatives();
    await draft.again(signal);
  });

  byId("write-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!isFilled(event.target)) return;
    leaveLink();
    byId("write-note").textContent = "";
    write();
  });
  byId("write-form").addEventListener("input", leaveLink);
  byId("write-prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("write-form").requestSubmit();
  });
  startShare(recipeOf);
  openRecipe = (recipe) => {
    example.stop();
    const most = modelNamed(recipe.model).limits.max_tokens;
    const fields = { model: recipe.model, prompt: recipe.prompt, seed: recipe.seed, max_tokens: Math.min(most, recipe.tokens), ...recipe.sampling };
    for (const name of ["model", "prompt", "max_tokens", ...SAMPLING]) {
      byId(`write-${name}`).value = fields[name] ?? "";
      keepField(`write-${name}`, byId(`write-${name}`).value);
    }
    byId("write-prompt").dataset.isOwn = "yes";
    write(recipe);
  };
  addEventListener("hashchange", () => openLink(models, openRecipe));
  byId("write-stop").addEventListener("click", () => task.stop());
  byId("write-more").addEventListener("click", () => isFilled(byId("write-form")) && more());
  byId("write-again").addEventListener("click", again);
  byId("write-keep-seed").addEventListener("click", () => {
    byId("write-seed").value = draft.seed;
    keepField("write-seed", draft.seed);
    byId("write-seed").closest("details").open = true;
  });
  byId("write-model").addEventListener("change", suggestPrompt);
  byId("write-more-settings").open = matchMedia("(min-width: 60rem)").matches;
  byId("alternatives").addEventListener("click", ({ target }) => {
    const button = target.closest("button");
    if (button === null) return;
    if (!isFilled(byId("write-form"))) return;
    const index = shown;
    choose(index, draft.tokens[index].top[Number(button.dataset.place)]).then(() => list.focus(index + 1));
    hideAlternatives();
  });
  byId("alternatives").addEventListener("keydown", (event) => {
    const buttons = [...byId("alternatives").querySelectorAll("button")];
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) buttons[buttons.indexOf(document.activeElement) + step]?.focus();
    else if (event.key === "Escape") list.focus(shown);
    else return;
    event.preventDefault();
  });
  const unit = byId("write-shade");
  unit.addEventListener("change", () => {
    drawLegend(byId("write-legend"), unit.value);
    list.colour(unit.value);
  });
  onLanguage(() => {
    drawLegend(byId("write-legend"), unit.value);
    list.unit = unit.value;
    if (draft === null) return;
    list.update([]);
    redraw();
    if (shown !== null && shown < draft.tokens.length) showAlternatives(shown);
  });
}

/** models: as GET /models gives them. */
export function offerWriteModels(found) {
  models = found;
  suggestPrompt();
  if (!isOpened) openLink(models, openRecipe);
  isOpened = true;
  if (!readLink(location.hash)?.model) showExample();
}

/** What somebody enters takes the place of a link's fields, also when the page is loaded again. */
function leaveLink() {
  if (location.hash.startsWith("#write?")) history.replaceState(null, "", "#write");
}

const modelNamed = (name) => models.find((model) => model.name === name);

/** What makes the text again, wherever its model is. */
function recipeOf() {
  const { seed, ...sampling } = draft.sampling;
  return { model: draft.model, bundle: modelNamed(draft.model)?.hashes.bundle.slice(0, 12) ?? "", prompt: draft.prompt, seed: draft.seed, tokens: draft.tokens.length, sampling, picks: draft.picks };
}

/** Mark what the model does not know in the prompt, where the service says that there is something. */
async function markUnknown({ model, prompt, unknown }, signal) {
  const unknownId = modelNamed(model)?.tokenizer.unknown_id ?? null;
  if (unknown === 0 || unknownId === null) return;
  const { results } = await post("score", { model, text: prompt, tokens: true, add_end: false }, signal);
  const characters = [...prompt];
  const pieces = [];
  let at = 0;
  for (const { id, start, end } of results[0].tokens) {
    if (id !== unknownId) continue;
    pieces.push(characters.slice(at, start).join(""), make("mark", { className: "unknown", title: t("token.unknown"), textContent: characters.slice(start, end).join("") }));
    at = end;
  }
  byId("write-prompt-shown").replaceChildren(...pieces, characters.slice(at).join(""));
}

function suggestPrompt() {
  const prompt = byId("write-prompt");
  const model = models.find((each) => each.name === byId("write-model").value);
  if (model === undefined) return;
  limitTokens(byId("write-max_tokens"), model.limits.max_tokens);
  byId("write-top_k").max = model.limits.max_top_k;
  if (!prompt.dataset.isOwn) prompt.value = exampleOf(model, "write");
}

function sampling() {
  const fields = SAMPLING.map((name) => [name, byId(`write-${name}`).valueAsNumber]);
  return Object.fromEntries(fields.filter(([, value]) => !Number.isNaN(value)));
}

function showBusy(isBusy) {
  byId("write-stop").disabled = !isBusy;
  byId("write-out").setAttribute("aria-busy", String(isBusy));
  const isThere = !isBusy && draft !== null && draft.tokens.length > 0;
  byId("write-share").hidden = !isThere;
  if (isThere) showShare(recipeOf(), modelNamed(draft.model)?.limits.max_tokens ?? Infinity);
  byId("write-go").disabled = isBusy;
  byId("write-again").disabled = !isThere;
  byId("write-more").disabled = !isThere || draft.finish === "end";
}

function showFigures() {
  const tokens = draft.tokens;
  const bits = tokens.reduce((sum, token) => sum + bitsOf(token.logprob), 0);
  byId("write-out").hidden = false;
  const figures = t("write.figures", { tokens: tokens.length, bits: fixed(tokens.length ? bits / tokens.length : 0) });
  byId("write-figures").textContent = draft.unknown ? `${figures}. ${t("write.unknown", { tokens: draft.unknown })}` : figures;
  byId("write-seed-used").textContent = String(draft.seed);
  byId("write-outcome").textContent = outcome === "same" ? t("write.same", { tokens: tokens.length }) : "";
}

function summary() {
  const tokens = draft.tokens.length;
  if (outcome === "same") return t("write.same", { tokens });
  return t(outcome === "done" ? "write.done" : "write.stopped", { tokens });
}

/** For a screen reader: once at the beginning and once at the end, not at every token. */
function say(text) {
  byId("status").textContent = text;
}

function showAlternatives(index) {
  shown = index;
  const token = draft.tokens[index];
  byId("alternatives-hint").hidden = true;
  byId("alternatives-title").textContent = t("alternatives.at", { token: visible(token), bits: fixed(bitsOf(token.logprob)), place: index + 1 });
  const rows = token.top.map((alternative, place) => alternativeRow(alternative, place, alternative.id === token.id));
  if (!token.top.some((alternative) => alternative.id === token.id)) rows.push(writtenRow(token));
  byId("alternatives").replaceChildren(...rows);
}

function hideAlternatives() {
  shown = null;
  byId("alternatives-hint").hidden = false;
  byId("alternatives-title").textContent = "";
  byId("alternatives").replaceChildren();
}

function alternativeRow(alternative, place, isWritten) {
  const button = make(
    "button",
    {
      type: "button",
      "data-place": place,
      "aria-label": t(isWritten ? "alternatives.written" : "alternatives.pick", { token: spoken(alternative), share: percent(Math.exp(alternative.logprob)) }),
    },
    ...alternativeCells(alternative),
  );
  return make("li", { className: isWritten ? "written" : "" }, button);
}

/** The token that stands there, where it is none of the likeliest. */
function writtenRow(token) {
  return make("li", { className: "written rare" }, ...alternativeCells(token));
}

function alternativeCells(token) {
  const probability = Math.exp(token.logprob);
  const bar = make("span", { className: "bar" });
  bar.style.setProperty("--share", `${(100 * probability).toFixed(2)}%`);
  return [
    make("span", { className: "name", textContent: isEnd(token) ? t("token.end") : visible(token) }),
    bar,
    make("span", { className: "share", textContent: percent(probability) }),
    make("span", { className: "bits", textContent: t("bits.of", { bits: fixed(bitsOf(token.logprob), 1) }) }),
  ];
}

/** Draw at most once a frame, however quickly tokens come. */
function frames(draw) {
  let isDue = false;
  return () => {
    if (isDue) return;
    isDue = true;
    requestAnimationFrame(() => {
      isDue = false;
      draw();
    });
  };
}
