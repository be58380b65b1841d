// Tokens or words as text, shaded by surprisal; a place in it can be pointed at, tapped, or reached by arrow keys.

import { bitsOf, isEnd } from "./draft.js";
import { fixed, number, t } from "./i18n.js";
import { make } from "./page.js";

const EDGES = { token: [0.5, 1, 2, 3, 4.5, 6, 8, 11], word: [2, 4, 6, 8, 11, 14, 18, 24] }; // bits with which a shade begins

// White space as the service knows it: unlike \s it has U+001C to U+001F and U+0085, and no byte-order mark.
const SPACE = "[\\t-\\r\\x1c-\\x1f\\x85\\p{Z}]";
const LEADING = new RegExp(`^${SPACE}+`, "u");
const ALL = new RegExp(`^${SPACE}+$`, "u");

/** Whether a text has characters, all of them white space. */
export const isBlank = (text) => ALL.test(text);

/** The class of a surprisal; a word costs as much as its tokens together, so words have a scale of their own. */
export function shade(bits, unit = "token") {
  return `bits-${EDGES[unit].filter((edge) => bits >= edge).length}`;
}

/** Fill a list with the shades and what they stand for. */
export function drawLegend(list, unit = "token") {
  const edges = EDGES[unit].map((edge) => number(edge));
  const ranges = [`< ${edges[0]}`, ...edges.map((edge, i) => (i + 1 < edges.length ? `${edge}–${edges[i + 1]}` : `≥ ${edge}`))];
  list.replaceChildren(make("li", { className: "unit", textContent: t(`legend.${unit}`) }), ...ranges.map((textContent, i) => make("li", { className: `bits-${i}`, textContent })));
}

/** For each token the bits of the word that it is part of. As in the service's figures, spaces belong to the word behind
 * them, and at the end to the last word; a token of spaces alone has null, the end of the text its own. */
export function bitsOfWords(tokens) {
  const words = []; // {bits, hasInk}
  const owners = tokens.map((token) => {
    const isNew = words.length === 0 || isEnd(token) || (words.at(-1).hasInk && LEADING.test(token.shown));
    if (isNew) words.push({ bits: 0, hasInk: false });
    words.at(-1).bits += bitsOf(token.logprob);
    words.at(-1).hasInk ||= isEnd(token) || !isBlank(token.shown);
    return words.at(-1);
  });
  const last = words.findLast((word) => word.hasInk);
  const rest = words.at(-1);
  if (last && rest !== last) last.bits += rest.bits;
  return tokens.map((token, i) => (isBlank(token.shown) && !isEnd(token) ? null : owners[i].bits));
}

/** The text of each token of a scored text, with what stands between tokens: before the first it belongs to that, else to
 * the token before. A character made of several tokens belongs to the last of them. */
export function textsOf(tokens, text) {
  const characters = [...text];
  return tokens.map(({ start }, i) => characters.slice(i ? start : 0, tokens[i + 1]?.start).join(""));
}

/** A text whose first spaces are never shaded. */
function inked(text) {
  const rest = text.replace(LEADING, "");
  const spaces = text.slice(0, text.length - rest.length);
  return rest === "" || spaces === "" ? [text] : [make("span", { className: "lead", textContent: spaces }), rest];
}

/** How a token is called where it stands alone: spaces, ends of lines and the bytes of a part of a character can be seen. */
export function visible(token) {
  if (isEnd(token)) return t("token.end");
  if (token.bytes !== undefined) return token.bytes.map((byte) => byte.toString(16).toUpperCase().padStart(2, "0")).join(" ");
  return token.text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣");
}

/** How a token is read aloud. */
export function spoken(token) {
  if (isEnd(token)) return t("token.end");
  if (token.text === "\n") return t("token.line");
  return token.text === " " ? t("token.space") : token.text;
}

/** A word or token that is only shown. */
export function shaded(text, bits, unit = "token") {
  return make("span", { className: `token ${shade(bits, unit)}`, title: t("bits.of", { bits: fixed(bits) }) }, ...inked(text));
}

/** The tokens of a draft. onShow(index, isHeld): one was pointed at, or chosen. onEnter: to its alternatives. */
export class TokenList {
  constructor(list, { onShow, onEnter }) {
    Object.assign(this, { list, onShow, onEnter, tokens: [], held: null, unit: "token" });
    list.addEventListener("pointerover", (event) => event.pointerType === "mouse" && this.held === null && this.show(event.target));
    list.addEventListener("focusin", (event) => this.show(event.target, true));
    list.addEventListener("click", (event) => this.show(event.target, true));
    list.addEventListener("keydown", (event) => this.key(event));
  }

  /** Show these tokens; those that are there already stay as they are. */
  update(tokens) {
    let same = 0;
    while (same < tokens.length && tokens[same] === this.tokens[same]) same += 1;
    while (this.list.childElementCount > same) this.list.lastElementChild.remove();
    this.list.append(...tokens.slice(same).map((token, i) => this.element(token, same + i)));
    this.tokens = tokens.slice();
    this.colour();
    if (this.held !== null && this.held >= same) this.release();
  }

  /** Shade by token or by word. */
  colour(unit = this.unit) {
    this.unit = unit;
    const bits = unit === "word" ? bitsOfWords(this.tokens) : this.tokens.map((token) => bitsOf(token.logprob));
    [...this.list.children].forEach((element, i) => {
      const name = shade(bits[i] ?? 0, unit);
      if (!element.classList.contains(name)) element.className = element.className.replace(/bits-\d/, name);
      element.title = bits[i] === null ? "" : t("bits.of", { bits: fixed(bits[i]) });
    });
  }

  release() {
    this.list.querySelector("[aria-selected=true]")?.setAttribute("aria-selected", "false");
    this.held = null;
  }

  focus(index) {
    this.list.children[Math.max(0, Math.min(index, this.tokens.length - 1))]?.focus();
  }

  element(token, index) {
    const bits = bitsOf(token.logprob);
    const marks = [isEnd(token) && "end", token.shown.includes("\n") && "line", token.shown === "" && !isEnd(token) && "part", token.isPicked && "picked"];
    const label = t("token.label", { token: spoken(token), bits: fixed(bits) });
    const properties = {
      className: ["token", shade(bits), ...marks.filter(Boolean)].join(" "),
      role: "option",
      tabIndex: index === 0 ? 0 : -1,
      "aria-label": label,
      "aria-selected": "false",
      "data-index": index,
      "data-end": isEnd(token) ? t("token.end") : "",
    };
    return make("span", properties, ...inked(token.shown));
  }

  show(target, isHeld = false) {
    const element = target.closest("[data-index]");
    if (element === null) return;
    if (isHeld) {
      this.release();
      this.held = Number(element.dataset.index);
      element.setAttribute("aria-selected", "true");
      this.list.querySelector("[tabindex='0']")?.setAttribute("tabindex", "-1");
      element.tabIndex = 0;
      if (matchMedia("(max-width: 60rem)").matches) element.scrollIntoView({ block: "center" }); // above the alternatives
    }
    this.onShow(Number(element.dataset.index), isHeld);
  }

  key(event) {
    const at = Number(event.target.dataset?.index ?? -1);
    const last = this.tokens.length - 1;
    const places = { ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + 20, PageUp: at - 20, Home: 0, End: last };
    if (event.key in places) this.focus(places[event.key]);
    else if (event.key === "Enter" || event.key === " ") this.onEnter(at);
    else if (event.key === "Escape") this.release();
    else return;
    event.preventDefault();
  }
}
