// Words in two languages: a key and values in, text out. Elements carry their keys, so that a switch changes all at once.

import { browser } from "./store.js";
import { en } from "./words-en.js";
import { ko } from "./words-ko.js";

const WORDS = { en, ko };
const CHOICE = "meari-language";
const ATTRIBUTES = { i18nLabel: "aria-label", i18nPlaceholder: "placeholder" };

let language = "en";

/** The text of a key with {name} replaced by values; numbers are written as the language writes them. */
export function t(key, values = {}) {
  const text = WORDS[language][key] ?? WORDS.en[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (_, name) => (typeof values[name] === "number" ? number(values[name]) : values[name]));
}

/** The English text of a key, whatever the language. */
export const inEnglish = (key) => WORDS.en[key];

/** A number with at most `digits` after the point. */
export function number(value, digits = 2) {
  return new Intl.NumberFormat(language, { maximumFractionDigits: digits }).format(value);
}

/** A number with exactly `digits` after the point, for columns. */
export function fixed(value, digits = 2) {
  return new Intl.NumberFormat(language, { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(value);
}

export function percent(probability) {
  const digits = probability < 0.01 ? 3 : 1;
  return new Intl.NumberFormat(language, { style: "percent", maximumFractionDigits: digits }).format(probability);
}

/** A date in words, of one as "2026-11-30". */
export function day(date) {
  return new Intl.DateTimeFormat(language, { dateStyle: "medium", timeZone: "UTC" }).format(new Date(date));
}

/** Begin with the language chosen before, else with the browser's. */
export function startLanguage() {
  const wanted = [browser.get(CHOICE), ...navigator.languages.map((tag) => tag.slice(0, 2).toLowerCase())];
  apply(wanted.find((tag) => tag in WORDS) ?? "en");
  return language;
}

export function chooseLanguage(tag) {
  browser.set(CHOICE, tag);
  apply(tag);
}

/** Call now, and again after each switch. */
export function onLanguage(render) {
  document.addEventListener("meari-language", render);
  render();
}

function apply(tag) {
  language = tag;
  document.documentElement.lang = tag;
  document.title = t("title");
  for (const element of document.querySelectorAll("[data-i18n]")) element.textContent = t(element.dataset.i18n);
  for (const [data, attribute] of Object.entries(ATTRIBUTES)) {
    const name = data.replace(/[A-Z]/g, (capital) => `-${capital.toLowerCase()}`);
    for (const element of document.querySelectorAll(`[data-${name}]`)) element.setAttribute(attribute, t(element.dataset[data]));
  }
  document.dispatchEvent(new Event("meari-language"));
}
