// Numbers over time → a picture: a column a token, a row a unit, the slowest units at the top. Colours come from the style.

const CELL = { width: 8, height: 3 }; // pixels of the picture; the page shows it as wide as there is room
const LEAST_WIDTH = 3; // on the page, of a column

/** What a picture needs: rows in order, the value of the full colour, and how much the units move from token to token. */
export function arranged(values) {
  const num = values[0]?.length ?? 0;
  const moves = Array.from({ length: num }, (_, unit) => meanMove(values, unit));
  const order = moves.map((_, unit) => unit).sort((one, other) => moves[one] - moves[other]);
  const sizes = values.flat().map(Math.abs).sort((one, other) => one - other);
  const full = Math.max(sizes[Math.floor(0.98 * sizes.length)] ?? 1, 0.05);
  return { values, order, full: full > 0.7 && full < 1 ? 1 : full, move: moves.reduce((sum, move) => sum + move, 0) / Math.max(1, num) };
}

/** The mean absolute change of a unit, as a share of how large it is on average. */
function meanMove(values, unit) {
  let [change, size] = [0, 1e-9];
  for (let t = 1; t < values.length; t += 1) {
    change += Math.abs(values[t][unit] - values[t - 1][unit]);
    size += Math.abs(values[t][unit]);
  }
  return change / size;
}

/** Draw, with a line around column number `at`, and one before column number `seam`, where the prompt is at its end. */
export function drawHeatMap(canvas, { values, order, full }, at, seam) {
  canvas.width = values.length * CELL.width;
  canvas.height = order.length * CELL.height;
  canvas.style.minWidth = `${values.length * LEAST_WIDTH}px`;
  const [low, middle, high, line] = ["--cold", "--middle", "--warm", "--hold"].map((name) => colour(canvas, name));
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  for (let y = 0; y < canvas.height; y += 1) {
    const unit = order[Math.floor(y / CELL.height)];
    for (let x = 0; x < canvas.width; x += 1) {
      const value = Math.max(-1, Math.min(1, values[Math.floor(x / CELL.width)][unit] / full));
      const end = value < 0 ? low : high;
      for (let i = 0; i < 3; i += 1) pixels.data[4 * (y * canvas.width + x) + i] = middle[i] + (end[i] - middle[i]) * Math.abs(value);
      pixels.data[4 * (y * canvas.width + x) + 3] = 255;
    }
  }
  context.putImageData(pixels, 0, 0);
  context.strokeStyle = `rgb(${line})`;
  if (seam > 0 && seam < values.length) {
    context.lineWidth = 3;
    context.setLineDash([9, 5]);
    context.strokeRect(seam * CELL.width, -3, 0, canvas.height + 6);
    context.setLineDash([]);
  }
  context.lineWidth = 2;
  context.strokeRect(at * CELL.width, 1, CELL.width, canvas.height - 2);
}

/** The column under a pointer. */
export function columnAt(canvas, event) {
  const { left, width } = canvas.getBoundingClientRect();
  return Math.floor(((event.clientX - left) / width) * (canvas.width / CELL.width));
}

/** A colour of the style sheet, written #rrggbb, as three numbers. */
function colour(element, name) {
  const hex = getComputedStyle(element).getPropertyValue(name).trim();
  return [1, 3, 5].map((at) => Number.parseInt(hex.slice(at, at + 2), 16));
}
