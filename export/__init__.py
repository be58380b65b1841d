"""From a checkpoint to a bundle: plain ONNX graphs written by hand from the weights, and everything a server
needs.

In: a run folder of `models/`. Out: a bundle folder that has been checked against torch before anybody can
see it. Knows nothing of training or of HTTP.

    weights_from_torch → weights → graphs (with arithmetic) → sessions → verification → bundle
"""
