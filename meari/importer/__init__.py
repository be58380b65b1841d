"""Language models of others as bundles: the state dict of an `nn.RNN`, `nn.GRU` or `nn.LSTM` model, and its vocabulary.

Input: a file of weights, a mapping of names, a vocabulary. Output: a bundle, checked like any export. Must not know:
HTTP, the runtime.

    weights_file.py   a file → tensors by their names; no pickled code is run
    layouts.py        names → the part that each plays; layouts.toml: the layouts that are known
    vocabulary.py     a file → tokens, the boundary and the unknown token among them
    network.py        tensors and tokens → meari's own model of the same log-probabilities
    bundle.py         all of it, then the export
"""
