"""The engine's own graph, put together at load from the two that a bundle holds.

    onnx_format.py   the parts of ONNX' file format that are read and written here
    drawing.py       nodes and constants, appended one after another
    sampler.py       log-probabilities → the next token, inside the graph
    engine_graph.py  cell and output layer → one graph that runs many steps, and samples

Knows nothing of onnxruntime, of sequences or of requests.
"""
