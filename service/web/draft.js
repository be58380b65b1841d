// A text as it is being written: requests of /generate one behind another, each from the state in which the last ended.
// Knows nothing of the page. Texts are exact: a place inside a part is reached by running that part again up to there,
// which its seed makes the same, and an alternative is forced by its id.

import { ApiError, stream } from "./api.js";

export const NUM_ALTERNATIVES = 8;
const LN2 = Math.log(2);
const FORCE = 100; // the most that logit_bias takes

const ends = new Set();

export const bitsOf = (logprob) => -logprob / LN2;

/** The tokens that end texts, as the models call them: no text leads to one. */
export const nameEnds = (models) => models.forEach(({ tokenizer }) => ends.add(tokenizer.boundary.token));
export const isEnd = (token) => ends.has(token.text);

/** One request's tokens. from: state token, or null for the prompt's end. forced: the id that was picked, or null. */
class Part {
  constructor(from, forced, maxTokens) {
    Object.assign(this, { from, forced, maxTokens, tokens: [], text: "", state: null, finish: null });
  }
}

export class Draft {
  /** sampling: fields of the request as they are sent, `seed` among them where one was chosen. */
  constructor(model, prompt, sampling) {
    Object.assign(this, { model, prompt, sampling, seed: sampling.seed ?? randomSeed(), parts: [], unknown: 0, onChange: () => {} });
  }

  get tokens() {
    return this.parts.flatMap((part) => part.tokens);
  }

  get text() {
    return this.parts.map((part) => part.text).join("");
  }

  get finish() {
    return this.parts.at(-1)?.finish ?? null;
  }

  /** Write on from the end; where a part was stopped, from the last token that came. */
  async more(maxTokens, signal) {
    await this.orAsBefore(
      () =>
        this.withStates(signal, async () => {
          const place = await this.placeAt(this.tokens.length, signal);
          await this.run(this.add(new Part(place.state, null, maxTokens)), signal);
        }),
      this.tokens.length,
    );
  }

  /** Everything before token number `index`, then `alternative`, then up to `maxTokens` more. */
  async choose(index, alternative, maxTokens, signal) {
    const { top } = this.tokens[index];
    await this.orAsBefore(async () => {
      await this.withStates(signal, async () => {
        const place = await this.placeAt(index, signal);
        this.parts = this.cut(index, place);
        const part = this.add(new Part(place.state, alternative.id, 1));
        await this.run(part, signal);
        part.tokens[0] = { ...part.tokens[0], logprob: alternative.logprob, top, isPicked: true };
      });
      this.onChange();
      if (maxTokens > 0 && !isEnd(alternative)) await this.more(maxTokens, signal);
    }, index + 1);
  }

  /** The chosen alternatives: places and ids. */
  get picks() {
    return this.tokens.flatMap(({ id, isPicked }, index) => (isPicked ? [{ index, id }] : []));
  }

  /** The text that has `tokens` tokens, those of `picks` among them. step: most tokens of one request. */
  async replay(tokens, picks, step, signal) {
    for (const { index, id } of picks) {
      await this.upTo(index + 1, step, signal);
      const alternative = this.tokens[index]?.top.find((each) => each.id === id);
      if (!alternative) throw new ApiError("changed");
      await this.choose(index, alternative, 0, signal);
    }
    await this.upTo(tokens, step, signal);
  }

  async upTo(tokens, step, signal) {
    while (this.tokens.length < tokens && this.finish !== "end") {
      const before = this.tokens.length;
      await this.more(Math.min(step, tokens - before), signal);
      if (this.tokens.length === before) throw new ApiError("timeout"); // the service's time was over before the first token
    }
  }

  /** The same requests again; throws an ApiError unless every token and log-probability is equal. */
  async again(signal) {
    const before = this.parts;
    await this.orAsBefore(async () => {
      this.parts = [];
      for (const old of before) {
        const size = old.finish === null ? old.tokens.length : old.maxTokens;
        if (size === 0) continue;
        const part = this.add(new Part(this.parts.at(-1)?.state ?? null, old.forced, size));
        await this.run(part, signal);
        if (old.forced !== null && part.tokens[0]?.id === old.forced) part.tokens = old.tokens.slice();
      }
      const [now, then] = [this.tokens, before.flatMap((part) => part.tokens)];
      const isSame = now.length === then.length && now.every((token, i) => token.id === then[i].id && token.logprob === then[i].logprob);
      if (!isSame) throw new ApiError("changed");
    });
  }

  /** What fails before it has brought the text past `length` tokens leaves it as it was. */
  async orAsBefore(work, length = Infinity) {
    const before = this.parts;
    try {
      this.parts = before.slice();
      await work();
    } catch (error) {
      if (this.tokens.length <= length) this.parts = before;
      this.onChange();
      throw error;
    }
  }

  /** State tokens may be those of a server that was started anew since: then the same requests bring others. */
  async withStates(signal, work) {
    const before = this.parts.slice();
    try {
      await work();
    } catch (error) {
      if (error.kind !== "invalid" || !error.detail.startsWith("state:") || before.length === 0) throw error;
      this.parts = before;
      await this.again(signal);
      await work();
    }
  }

  /** The state token after the first `index` tokens, null where that is the end of the prompt; and where the place is
   * inside a part, the part's text up to there. */
  async placeAt(index, signal) {
    let left = index;
    for (const part of this.parts) {
      if (left === 0) return { state: part.from };
      if (left < part.tokens.length || (left === part.tokens.length && part.state === null)) {
        const again = new Part(part.from, part.forced, left);
        await this.run(again, signal, () => {});
        return again;
      }
      left -= part.tokens.length;
    }
    return { state: this.parts.at(-1)?.state ?? null };
  }

  /** The parts without the tokens from number `index` on. */
  cut(index, { state, text }) {
    let left = index;
    return this.parts.flatMap((part) => {
      const kept = Math.min(left, part.tokens.length);
      left -= kept;
      if (kept === 0) return [];
      if (kept === part.tokens.length) return [part];
      const shorter = new Part(part.from, part.forced, kept);
      return [Object.assign(shorter, { tokens: part.tokens.slice(0, kept), text, state, finish: "length" })];
    });
  }

  add(part) {
    this.parts.push(part);
    this.onChange();
    return part;
  }

  async run(part, signal, onChange = () => this.onChange()) {
    for await (const event of stream("generate", this.request(part), signal)) {
      if (part.from === null && event.usage) this.unknown = event.usage.unknown_tokens ?? 0; // of the prompt's tokens
      for (const choice of event.choices) {
        part.text += choice.text;
        part.tokens.push(...withShownText(choice.tokens ?? [], choice.text));
        part.finish = choice.finish_reason ?? null;
        part.state = choice.state ?? null;
        onChange();
      }
    }
  }

  request(part) {
    const start = part.from === null ? { prompt: this.prompt } : { state: part.from };
    const forced = { temperature: 0, logit_bias: { [part.forced]: FORCE } };
    return {
      model: this.model,
      ...start,
      ...(part.forced === null ? this.sampling : forced),
      seed: this.seed,
      max_tokens: part.maxTokens,
      logprobs: NUM_ALTERNATIVES,
      return_state: true,
    };
  }
}

/** Each token of one event with the text that it stands for. A character made of several tokens belongs to the last of
 * them, and a space that the tokenizer puts between words to the word behind it. The unknown token stands for any text. */
export function withShownText(tokens, text, unknownId = null) {
  const shown = tokens.map(() => "");
  let at = 0;
  let unfinished = -1; // the last token that is only a part of a character
  tokens.forEach((token, i) => {
    const isLast = i === tokens.length - 1;
    const found = isEnd(token) || token.id === unknownId || token.text.includes("\ufffd") ? -1 : text.indexOf(token.text, at);
    if (found < 0) {
      unfinished = i;
    } else {
      if (unfinished >= 0) [shown[unfinished], at] = [text.slice(at, found), found];
      const end = found + token.text.length;
      [shown[i], at, unfinished] = [text.slice(at, end), end, -1];
    }
    if (isLast) shown[unfinished >= 0 ? unfinished : i] += text.slice(at);
  });
  return tokens.map((token, i) => ({ ...token, shown: shown[i] }));
}

/** Exact in JSON, and known from the start, so that a text can be stopped and found again. */
function randomSeed() {
  const [high, low] = crypto.getRandomValues(new Uint32Array(2));
  return (high & 0x1fffff) * 2 ** 32 + low;
}
