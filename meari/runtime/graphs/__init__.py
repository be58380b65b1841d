"""The engine's own graphs, drawn at load from the two that a bundle holds.

    onnx_graph.py     the file format, and graphs drawn node by node
    bundle_graph.py   the two graphs of a bundle
    layers.py         cell → many steps over given tokens, layer by layer
    rows.py           blocks of the vocabulary and running sums, which both samplers use
    ranked.py         log-probabilities → one of the top_k likeliest tokens
    sampler.py        log-probabilities → the next token, inside the graph
    engine_graphs.py  cell and output layer → the reader, which is given tokens, and the writer, which samples them

Input: bytes of .onnx files. Output: bytes of .onnx files. Must not know: onnxruntime, sequences, requests.
"""
