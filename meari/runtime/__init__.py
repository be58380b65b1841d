"""The inference library: a bundle and text → tokens, log-probabilities and states. Must not know: HTTP, torch.

From the top down, each layer above those that it uses:

    completion.py     one prompt → choices, whole or piece by piece
    scores.py         log-probabilities → figures of texts, tokens and words
    requests.py       what may be requested, and its limits
    state_tokens.py   states as signed text
    model.py          a bundle with its running engine
    bundle.py         a bundle's folder → a runner, checked on this CPU
    engine/           the loop: admit → run a turn of one lane → settle
    graphs/           a bundle's graphs → the graphs that the engine runs
    text/             tokenizer, detokenizer, stop texts, words
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before onnxruntime is imported: it would report every session
