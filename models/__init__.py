"""Training: text files → checkpoint. The four model families, their training, evaluation and reports.

Input: a TOML file and the text files that it names. Output: a checkpoint (weights, tokenizer, config, figures).
Must not know: ONNX, HTTP.
"""
