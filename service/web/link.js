// A written text as a link, as curl, or as Python. A link has everything behind its "#", which no server sees:
// #write?model=…&prompt=…&seed=…&…&check=…, where the check tells a link that was cut or changed on its way.

const NUMBERS = ["temperature", "top_k", "top_p", "min_p", "repetition_penalty"];
const MAX_PICKS = 1000;

/** recipe: {model, bundle, prompt, seed, tokens, sampling, picks: [{index, id}]}; everything that makes the text again. */
export function linkOf(recipe, address) {
  const fields = new URLSearchParams({ model: recipe.model, bundle: recipe.bundle, prompt: recipe.prompt, seed: recipe.seed, tokens: recipe.tokens });
  for (const name of NUMBERS) if (recipe.sampling[name] !== undefined) fields.set(name, recipe.sampling[name]);
  if (recipe.picks.length > 0) fields.set("picks", recipe.picks.map(({ index, id }) => `${index}.${id}`).join("_"));
  const text = fields.toString();
  return `${address}#write?${text}&check=${checkOf(text)}`;
}

/** The recipe of an address's part behind "#"; null where it has none, "damaged" where it is none that the page has made. */
export function readLink(hash) {
  if (!hash.startsWith("#write?")) return null;
  const [, text, check] = /^#write\?(.*)&check=(\w+)$/s.exec(hash) ?? [];
  if (text === undefined || checkOf(text) !== check) return "damaged";
  const fields = new URLSearchParams(text);
  const seed = Number(fields.get("seed"));
  const tokens = Number(fields.get("tokens"));
  const sampling = Object.fromEntries(NUMBERS.filter((name) => fields.has(name)).map((name) => [name, Number(fields.get(name))]));
  const picks = (fields.get("picks") ?? "").split("_").filter(Boolean).map((pick) => pick.split(".").map(Number)).map(([index, id]) => ({ index, id }));
  const isWhole = (number) => Number.isSafeInteger(number) && number >= 0;
  const isSound = [seed, tokens, ...picks.flatMap(({ index, id }) => [index, id])].every(isWhole) && Object.values(sampling).every(Number.isFinite) && tokens > 0 && picks.length <= MAX_PICKS;
  return isSound ? { model: fields.get("model") ?? "", bundle: fields.get("bundle") ?? "", prompt: fields.get("prompt") ?? "", seed, tokens, sampling, picks } : "damaged";
}

/** The request of a text that one request makes. */
const bodyOf = ({ model, prompt, seed, tokens, sampling }) => ({ model, prompt, max_tokens: tokens, ...sampling, seed });

/** For a POSIX shell; a key is taken from the environment, never from the page. */
export function curlOf(recipe, address, hasKey) {
  const key = hasKey ? ' -H "Authorization: Bearer $MEARI_API_KEY"' : "";
  return `curl -s${key} -H 'Content-Type: application/json' ${quoted(`${address}generate`)} -d ${quoted(JSON.stringify(bodyOf(recipe)))}`;
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function pythonOf(recipe, address, hasKey) {
  const { model, prompt, ...fields } = bodyOf(recipe);
  const key = hasKey ? ', key=os.environ["MEARI_API_KEY"]' : "";
  const settings = Object.entries(fields).map(([name, value]) => `, ${name}=${value}`).join("");
  return `${hasKey ? "import os\n\n" : ""}import meari\n\nlm = meari.load(${literal(address)}, model=${literal(model)}${key})\nprint(lm.generate(${literal(prompt)}${settings}).text)\n`;
}

/** A text as Python writes it: like JSON, but a character past U+FFFF stands as itself. */
const literal = (text) => JSON.stringify(text).replaceAll("\u007f", "\\x7f");

/** FNV-1a over UTF-16 units, in eight digits. */
function checkOf(text) {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i += 1) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  return (hash >>> 0).toString(16).padStart(8, "0");
}
