"""From a prepared corpus and a config to a run folder with the best weights found.

In: token files, a config. Out: checkpoints, a history of every step. Knows nothing of raw text, ONNX or HTTP.
"""
