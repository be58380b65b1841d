"""Export: checkpoint → bundle. Plain ONNX graphs written by hand from the weights, and every other file of a server.

Input: a run folder of `models/`. Output: a bundle folder that was checked against torch before it became visible.
Must not know: training, HTTP.

    weights_from_torch → weights → graphs (with arithmetic) → sessions → verification → bundle
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = (
    "1"  # before the import of onnxruntime, which would otherwise report every session
)
