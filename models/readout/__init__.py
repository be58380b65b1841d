"""Training of a reservoir's readout, by cross-entropy or by ridge regression.

Input: a reservoir and a row of training token ids. Output: the weights of its readout. Must not know: text,
checkpoints, the drawing of a reservoir.
"""
