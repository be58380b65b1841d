"""The inference library: a bundle and text → tokens, log-probabilities and states. No HTTP, no torch."""
