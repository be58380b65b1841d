"""Training: from a prepared corpus and a config to a run folder with the best weights found.

Input: token files, a config. Output: checkpoints, a history of every step. Must not know: raw text, ONNX, HTTP.
"""
