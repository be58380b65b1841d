"""The trained part of an echo state network: from states of a fixed reservoir to an output layer.

In: a reservoir and a row of training token ids. Out: the weights of its readout, by cross-entropy or by ridge
regression. Knows nothing of text, of checkpoints or of how a reservoir is made.
"""
