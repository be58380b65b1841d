// The Learn pane: the lecture's terms in two languages, and the pictures of the measured claims where there are any.

import { get } from "./api.js";
import { inEnglish, onLanguage, t } from "./i18n.js";
import { byId, make, showError } from "./page.js";

/** English, Korean, sign in the formulas; what it means is in the words of each language. */
const TERMS = [
  ["recurrent neural network (RNN)", "순환 신경망", "", "rnn"],
  ["hidden state", "은닉 상태", "s, h", "state"],
  ["input", "입력", "x", "input"],
  ["output distribution", "출력 분포", "y", "output"],
  ["weight matrix", "가중치 행렬", "U, W, V", "weight"],
  ["gate", "게이트", "r, z, i, f, o", "gate"],
  ["reset gate", "리셋 게이트", "r", "reset"],
  ["update gate", "업데이트 게이트", "z", "update"],
  ["input gate", "입력 게이트", "i", "input_gate"],
  ["forget gate", "망각 게이트", "f", "forget"],
  ["output gate", "출력 게이트", "o", "output_gate"],
  ["candidate state", "후보 상태", "n, g", "candidate"],
  ["cell state", "셀 상태", "c", "cell"],
  ["echo state network (ESN)", "에코 상태 네트워크", "", "esn"],
  ["reservoir", "저수지(리저버)", "W", "reservoir"],
  ["spectral radius", "스펙트럼 반지름", "ρ(W)", "radius"],
  ["leak rate", "누출률", "a", "leak"],
  ["readout", "판독층", "V", "readout"],
  ["backpropagation through time", "시간 역전파(BPTT)", "", "bptt"],
  ["vanishing gradient", "기울기 소실", "", "vanishing"],
  ["exploding gradient", "기울기 폭주", "", "exploding"],
  ["gradient clipping", "기울기 자르기", "", "clipping"],
  ["surprisal", "놀라움(정보량)", "−log₂ P", "surprisal"],
  ["perplexity", "퍼플렉시티(혼란도)", "", "perplexity"],
  ["temperature", "온도", "T", "temperature"],
];
const MATHML = "http://www.w3.org/1998/Math/MathML";
const VERDICTS = {
  HOLDS: "holds",
  "HOLDS IN PART": "part",
  "DOES NOT HOLD": "not",
  "NOT SETTLED": "unsettled",
  "TOO SMALL TO JUDGE": "small",
};

let claims = null; // once they have been asked for

export function startLearn() {
  for (const place of document.querySelectorAll("[data-math]")) place.replaceWith(formula(place.dataset.math));
  document.addEventListener("meari-pane", ({ detail }) => detail === "learn" && claims === null && load());
  onLanguage(() => {
    byId("learn-terms").replaceChildren(...TERMS.map(termRow));
    if (claims !== null) drawClaims();
  });
}

/** Words with spaces between them → MathML: names, name_index, numbers; everything else is an operator. */
function formula(text) {
  const math = mathElement("math", ...text.split(" ").flatMap(symbols));
  math.setAttribute("display", "block");
  return math;
}

function symbols(word) {
  const [name, index] = word.split("_");
  if (index) return [mathElement("msub", ...symbols(name), mathElement("mrow", ...index.split(/(−)/).flatMap(symbols)))];
  const kind = /^\d+$/.test(word) ? "mn" : /^\p{L}+$/u.test(word) ? "mi" : "mo";
  const isFunction = word === "tanh" || word === "softmax";
  return [mathElement(kind, word), ...(isFunction ? [mathElement("mo", "\u2061")] : [])];
}

function mathElement(kind, ...children) {
  const element = document.createElementNS(MATHML, kind);
  element.append(...children);
  return element;
}

function termRow([english, korean, sign, key]) {
  return make(
    "tr",
    {},
    make("td", { lang: "en", textContent: english }),
    make("td", { lang: "ko", textContent: korean }),
    make("td", { className: "sign", textContent: sign }),
    make("td", { textContent: t(`term.${key}`) }),
  );
}

async function load() {
  try {
    ({ claims } = await get("web/claims.json"));
    showError(byId("learn-error"), null);
    drawClaims();
  } catch (error) {
    showError(byId("learn-error"), error, load);
  }
}

function drawClaims() {
  byId("learn-claims-note").textContent = t(claims.length ? "learn.claims.some" : "learn.claims.none");
  byId("learn-claims").replaceChildren(...claims.map(claimFigure));
}

function claimFigure({ number, title, verdict, picture }) {
  const key = `claim.${number}`;
  const isKnown = title === inEnglish(key); // else the claims are those of another version, and have one language
  const name = isKnown ? t(key) : title;
  const caption = make("figcaption", {}, make("span", { lang: isKnown ? "" : "en", textContent: `${number}. ${name}` }), ": ", make("strong", { textContent: verdict in VERDICTS ? t(`verdict.${VERDICTS[verdict]}`) : verdict }));
  const image = make("img", { src: `web/claims/${encodeURIComponent(picture)}`, alt: name });
  return make("figure", { className: "card" }, make("button", { type: "button", className: "picture", "aria-label": t("picture.enlarge", { name }), onclick: () => enlarge(image.src, name) }, image), caption);
}

function enlarge(source, name) {
  Object.assign(byId("picture"), { src: source, alt: name });
  byId("picture-title").textContent = name;
  byId("picture-dialog").showModal();
}
