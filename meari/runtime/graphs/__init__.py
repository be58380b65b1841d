"""The engine's own graphs, put together at load from the two that a bundle holds.

    onnx_format.py   the parts of ONNX' file format that are read and written here
    drawing.py       nodes and constants, appended one after another
    sampler.py       log-probabilities → the next token, inside the graph
    bundle_graph.py  what a bundle holds
    fusion.py        products in 8-bit integers with fewer passes over them
    layers.py        cell → many steps over given tokens, layer by layer
    reader.py        cell and output layer → many steps over given tokens, and the figures of some of them
    writer.py        cell and output layer → many steps, each over the token that the one before has sampled

Knows nothing of onnxruntime, of sequences or of requests.
"""
