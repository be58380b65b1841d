// Copying a written text, as a link, as curl or as Python, and opening such a link.

import { hasKey } from "./api.js";
import { t } from "./i18n.js";
import { curlOf, linkOf, pythonOf, readLink } from "./link.js";
import { byId } from "./page.js";

const KINDS = { link: linkOf, curl: curlOf, python: pythonOf };

/** recipeOf(): that of the text that is shown. */
export function startShare(recipeOf) {
  for (const [kind, write] of Object.entries(KINDS)) {
    byId(`write-copy-${kind}`).addEventListener("click", () => copy(write(recipeOf(), new URL(".", location.href).href, hasKey())));
  }
}

/** Only a link holds what takes several requests: chosen alternatives, and more tokens than one request may have. */
export function showShare(recipe, maxTokens) {
  const why = recipe.picks.length > 0 ? "picks" : recipe.tokens > maxTokens ? "long" : null;
  for (const kind of ["curl", "python"]) byId(`write-copy-${kind}`).disabled = why !== null;
  byId("write-copied").hidden = true;
  byId("write-copy-note").textContent = why === null ? "" : t(`copy.${why}`);
}

async function copy(text) {
  const place = byId("write-copied");
  place.value = text;
  place.hidden = false;
  place.select();
  const isCopied = (await navigator.clipboard?.writeText(text).then(() => true, () => false)) || document.execCommand("copy");
  byId("write-copy-note").textContent = t(isCopied ? "copy.done" : "copy.yourself");
}

/** Open the link in the address, if there is one. open(recipe): show its text. */
export function openLink(models, open) {
  const recipe = readLink(location.hash);
  const note = byId("write-note");
  note.textContent = "";
  if (recipe === null) return;
  const model = models.find(({ name }) => name === recipe.model);
  if (recipe === "damaged") note.textContent = t("link.damaged");
  else if (!model) note.textContent = t("link.model", { model: recipe.model.slice(0, 100) });
  else {
    if (!model.hashes.bundle.startsWith(recipe.bundle)) note.textContent = t("link.bundle", { model: model.name });
    open(recipe);
  }
}
