// Tokens or words as text, shaded by surprisal; a place in it can be pointed at, tapped, or reached by arrow keys.

import { bitsOf, isEnd } from "./draft.js";
import { fixed, t } from "./i18n.js";
import { make } from "./page.js";

const LIMITS = [0.5, 1, 2, 3, 4.5, 6, 8, 11]; // bits; the shades' lower bounds

/** The class of a surprisal. */
export function shade(bits) {
  return `bits-${LIMITS.filter((limit) => bits >= limit).length}`;
}

/** Fill a list with the shades and what they stand for. */
export function drawLegend(list) {
  const bounds = [0, ...LIMITS];
  const entries = bounds.map((low, i) => make("li", { className: `bits-${i}`, textContent: i === LIMITS.length ? `≥ ${low}` : `${low}` }));
  list.replaceChildren(make("li", { className: "unit", textContent: t("legend") }), ...entries);
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
export function shaded(text, bits) {
  return make("span", { className: `token ${shade(bits)}`, textContent: text, title: t("bits.of", { bits: fixed(bits) }) });
}

/** The tokens of a draft. onShow(index, isHeld): one was pointed at, or chosen. onEnter: to its alternatives. */
export class TokenList {
  constructor(list, { onShow, onEnter }) {
    Object.assign(this, { list, onShow, onEnter, tokens: [], held: null });
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
    if (this.held !== null && this.held >= same) this.release();
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
    return make("span", {
      className: ["token", shade(bits), ...marks.filter(Boolean)].join(" "),
      role: "option",
      tabIndex: index === 0 ? 0 : -1,
      textContent: token.shown,
      "aria-label": label,
      "aria-selected": "false",
      "data-index": index,
      "data-end": isEnd(token) ? t("token.end") : "",
    });
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
