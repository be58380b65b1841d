// The page as a whole: tabs, language, light and dark, the models, the key. Each pane is a module of its own.

import { get, onUnauthorized, onUnknownModel } from "./api.js";
import { offerCompareModels, startCompare } from "./compare.js";
import { offerCellRuns, startCellRuns } from "./cellrun.js";
import { offerCards, startCards } from "./cards.js";
import { nameEnds } from "./draft.js";
import { firstModel } from "./examples.js";
import { chooseLanguage, startLanguage } from "./i18n.js";
import { startLearn } from "./learn.js";
import { byId, make, showError } from "./page.js";
import { offerScoreModels, startScore } from "./score.js";
import { browser, keepFields, keptValue } from "./store.js";
import { offerTypeModels, startType } from "./type.js";
import { offerWriteModels, startWrite } from "./write.js";

const THEME = "meari-theme";
const RETRY_MILLISECONDS = 2000;

startTheme();
const language = startLanguage();
byId("language").value = language;
byId("language").addEventListener("change", ({ target }) => chooseLanguage(target.value));
keepFields("main form :is(input, select, textarea)[id], #type-model, #type-text, #write-shade, #score-shade");
onUnauthorized(askForKey);
onUnknownModel(loadModels);
startCards();
startWrite();
startType();
startScore();
startCompare();
startLearn();
startCellRuns();
startTabs();
loadModels();

function startTheme() {
  const select = byId("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const apply = () => {
    const { dataset } = document.documentElement;
    dataset.theme = select.value;
    dataset.shown = select.value === "dark" || (select.value === "system" && dark.matches) ? "dark" : "light"; // for pictures
  };
  dark.addEventListener("change", apply);
  select.value = browser.get(THEME) ?? "system";
  apply();
  select.addEventListener("change", () => {
    browser.set(THEME, select.value);
    apply();
  });
}

/** As the ARIA practices say: one tab stop, arrows, Home and End; the address keeps which. */
function startTabs() {
  const tabs = [...document.querySelectorAll("[role=tab]")];
  const select = (tab) => {
    for (const each of tabs) {
      each.setAttribute("aria-selected", String(each === tab));
      each.tabIndex = each === tab ? 0 : -1;
      byId(each.getAttribute("aria-controls")).hidden = each !== tab;
    }
    document.dispatchEvent(new CustomEvent("meari-pane", { detail: tab.id.slice(4) }));
  };
  const named = () => byId(`tab-${location.hash.slice(1)}`) ?? tabs[0];
  tabs.forEach((tab, at) => {
    const go = (to) => {
      history.replaceState(null, "", `#${to.id.slice(4)}`);
      select(to);
      to.focus();
    };
    tab.addEventListener("click", () => go(tab));
    tab.addEventListener("keydown", (event) => {
      const places = { ArrowRight: at + 1, ArrowLeft: at - 1 + tabs.length, Home: 0, End: tabs.length - 1 };
      if (!(event.key in places)) return;
      event.preventDefault();
      go(tabs[places[event.key] % tabs.length]);
    });
  });
  addEventListener("hashchange", () => select(named()));
  select(named());
}

/** Offer the models that there are now; what was chosen stays chosen if it is still there. */
async function loadModels() {
  const place = byId("models-error");
  try {
    const { models, default: standard } = await get("models");
    showError(place, null);
    const names = models.map(({ name }) => name);
    const first = firstModel(models, standard, language)?.name;
    for (const select of document.querySelectorAll("select[data-models]")) {
      const chosen = select.value || keptValue(select.id);
      select.replaceChildren(...names.map((name) => make("option", { value: name, textContent: name })));
      select.value = [chosen, first, ...names].find((name) => names.includes(name)) ?? "";
    }
    for (const button of document.querySelectorAll("[data-needs-models]")) button.disabled = false;
    nameEnds(models);
    offerCards(models);
    offerWriteModels(models);
    offerTypeModels(models);
    offerScoreModels(models);
    offerCompareModels(models);
    offerCellRuns(models);
  } catch (error) {
    showError(place, error, loadModels);
    if (error.kind === "not_ready") setTimeout(loadModels, RETRY_MILLISECONDS);
  }
}

/** A key from the person, or null. */
function askForKey(isWrong) {
  const dialog = byId("key-dialog");
  byId("key-wrong").hidden = !isWrong;
  byId("key").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const done = (key) => {
      dialog.close();
      resolve(key);
    };
    byId("key-form").onsubmit = (event) => {
      event.preventDefault();
      done(byId("key").value.trim());
    };
    byId("key-cancel").onclick = () => done(null);
    dialog.oncancel = (event) => {
      event.preventDefault();
      done(null);
    };
  });
}
