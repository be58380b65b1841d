// Rows → a CSV file for the person to keep. Figures as they came, with a point, whatever the language.

const MARK = "\ufeff"; // by which spreadsheets know UTF-8

/** rows: lists of texts and numbers. */
export function csvOf(rows) {
  return MARK + rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

export function download(name, text, type = "text/csv;charset=utf-8") {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** Quoted where it must be. A text that a spreadsheet would take for a formula gets an apostrophe in front. */
function cell(value) {
  if (typeof value === "number") return String(value);
  const text = /^[=+\-@\t\r]/.test(value ?? "") ? `'${value}` : String(value ?? "");
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
