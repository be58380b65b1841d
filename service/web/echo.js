// What is left of one token: the states of a text beside those of the same text with that token changed.

import { post } from "./api.js";

/** The text with the character or word at a token's place made another one, of the same kind as far as that is known. An
 * unknown token stays one: as text its name would be several. */
export function changed(tokens, place, { kind, unknown_id: unknownId = null }) {
  const encoder = new TextEncoder();
  const pieces = tokens.map(({ id, text, bytes }) => (id === unknownId ? encoder.encode("\ufffd") : (bytes ?? encoder.encode(text))));
  const other = /^[\uac00-\ud7a3]/.test(tokens[place].text.trim()) ? ["나", "가"] : ["e", "a"];
  pieces[place] = encoder.encode(tokens[place].text === other[0] ? other[1] : other[0]);
  const spaced = kind === "word" ? pieces.flatMap((piece, i) => (i ? [encoder.encode(" "), piece] : [piece])) : pieces;
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(spaced.flatMap((piece) => [...piece])));
}

/** For each state tensor the absolute differences, token by token; nothing before the change. */
export async function echoOf({ model, tokens, tensors }, place, units, signal, tokenizer) {
  const other = await post("states", { model, text: changed(tokens, place, tokenizer), units }, signal);
  const length = Math.min(tokens.length, other.tokens.length);
  return tensors.map(({ values }, tensor) =>
    values.slice(0, length).map((row, t) => row.map((value, unit) => Math.abs(value - other.tensors[tensor].values[t][unit]))),
  );
}

/** The mean change after each token, from the changed one on, as a share of the largest. */
export function sharesOf(values, place) {
  const means = values.slice(place).map((row) => row.reduce((sum, value) => sum + value, 0) / row.length);
  const full = Math.max(...means, 1e-9);
  return means.map((mean) => mean / full);
}

/** After how many tokens the mean difference is, for good, under half of its largest; null where that never comes. */
export function halfLife(values, place) {
  const means = values.map((row) => row.reduce((sum, value) => sum + value, 0) / row.length);
  const half = Math.max(...means) / 2;
  const last = means.findLastIndex((mean) => mean >= half);
  return last === means.length - 1 ? null : Math.max(1, last + 1 - place);
}
