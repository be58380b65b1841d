// What a tab, or the browser, keeps for the page; where the browser forbids that, it is kept in memory until a reload.

export const tab = storeOf("sessionStorage");
export const browser = storeOf("localStorage");

function storeOf(kind) {
  const memory = new Map();
  return {
    get(name) {
      try {
        return window[kind].getItem(name) ?? memory.get(name) ?? null;
      } catch {
        return memory.get(name) ?? null;
      }
    },
    set(name, value) {
      memory.set(name, value);
      try {
        window[kind].setItem(name, value);
      } catch {
        // forbidden, or full
      }
    },
  };
}

const FIELDS = "meari-fields";

/** The fields that somebody has changed in this tab: id → value. */
function keptFields() {
  try {
    return Object(JSON.parse(tab.get(FIELDS)));
  } catch {
    return {};
  }
}

/** What was chosen in this field before the page was loaded, or null. */
export function keptValue(id) {
  const fields = keptFields();
  return Object.hasOwn(fields, id) ? fields[id] : null;
}

export function keepField(id, value) {
  tab.set(FIELDS, JSON.stringify({ ...keptFields(), [id]: value }));
}

/** Fill the fields as they were, and keep every change from now on. A field that is somebody's own has data-is-own. */
export function keepFields(selector) {
  for (const field of document.querySelectorAll(selector)) {
    const kept = keptValue(field.id);
    const property = field.type === "checkbox" ? "checked" : "value";
    if (kept !== null) {
      field[property] = kept;
      field.dataset.isOwn = "yes";
    }
    for (const kind of ["input", "change"]) {
      field.addEventListener(kind, () => {
        field.dataset.isOwn = "yes";
        keepField(field.id, field[property]);
      });
    }
  }
}
