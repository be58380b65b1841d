"""From text files to a checkpoint: the four model families, their training, evaluation and reports.

Enters: a TOML file and the text files that it names. Leaves: a checkpoint (weights, tokenizer, config, figures).
Knows nothing of ONNX or HTTP.
"""
