"""Measures what the lecture says of recurrent language models, and writes a page with a picture a claim.

Input: text, or none; a time budget. Output: a folder with `README.md`, a PNG a claim and `results.json`.

    text, grammar     what is read: files, or a text made here          text → token ids in three parts
    families          the four families at one number of trained parameters
    training          truncated back-propagation in memory, on a budget
    workbench         text, sizes, budget and models trained once, for all claims with one seed
    measures/         one file a claim: measure and judge each seed; two sentences and a picture of all
    multiply_adds     what a training costs whatever the kernels are
    spread            figures with the noise of their seeds, and what may not happen beyond it
    catalogue, run    all claims for every seed, one after the other
    results, page     numbers → results.json → README.md

Must not know bundles, HTTP or run folders.
"""
