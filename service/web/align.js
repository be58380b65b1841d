// Two lists of words → rows of pairs: what they have in common side by side, the rest against a gap or one another.

const MAX_CELLS = 4_000_000; // of the table of common subsequences

/** Rows {left, right, isSame, isPrefix}; left and right are words or null. Words are {text, …}. */
export function align(left, right) {
  let first = 0;
  while (first < Math.min(left.length, right.length) && left[first].text === right[first].text) first += 1;
  const prefix = left.slice(0, first).map((word, i) => ({ left: word, right: right[i], isSame: true, isPrefix: true }));
  return [...prefix, ...alignRest(left.slice(first), right.slice(first))];
}

function alignRest(left, right) {
  if (left.length * right.length > MAX_CELLS) return paired(left, right);
  const lengths = commonLengths(left, right);
  const rows = [];
  let [i, j, fromI, fromJ] = [0, 0, 0, 0];
  while (i < left.length && j < right.length) {
    if (left[i].text === right[j].text) {
      rows.push(...paired(left.slice(fromI, i), right.slice(fromJ, j)), { left: left[i], right: right[j], isSame: true, isPrefix: false });
      [i, j] = [i + 1, j + 1];
      [fromI, fromJ] = [i, j];
    } else if (lengths[i + 1][j] >= lengths[i][j + 1]) i += 1;
    else j += 1;
  }
  return [...rows, ...paired(left.slice(fromI), right.slice(fromJ))];
}

/** Words that differ, one against the other in their order. */
function paired(left, right) {
  return Array.from({ length: Math.max(left.length, right.length) }, (_, i) => ({ left: left[i] ?? null, right: right[i] ?? null, isSame: false, isPrefix: false }));
}

/** lengths[i][j]: of the longest common subsequence of left[i…] and right[j…]. */
function commonLengths(left, right) {
  const lengths = Array.from({ length: left.length + 1 }, () => new Uint16Array(right.length + 1));
  for (let i = left.length - 1; i >= 0; i -= 1) {
    for (let j = right.length - 1; j >= 0; j -= 1) {
      lengths[i][j] = left[i].text === right[j].text ? lengths[i + 1][j + 1] + 1 : Math.max(lengths[i + 1][j], lengths[i][j + 1]);
    }
  }
  return lengths;
}
