"""From a checkpoint to a bundle: plain ONNX graphs written by hand from the weights, and everything a server
needs.

In: a run folder of `models/`. Out: a bundle folder that has been checked against torch before anybody can
see it. Knows nothing of training or of HTTP.

    weights_from_torch → weights → graphs (with arithmetic) → sessions → verification → bundle
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before onnxruntime is imported: it would report every session to its makers
