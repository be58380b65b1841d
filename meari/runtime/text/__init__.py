"""Text ↔ tokens: a bundle's tokenizer, text that grows token by token, stop strings in it."""
