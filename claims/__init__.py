"""Measures what the lecture says of recurrent language models, and writes a page with a picture a claim.

In: text, or none; a time budget. Out: a folder with `README.md`, a PNG a claim and `results.json`.

    text, grammar     what is read: files, or a text made here          text → token ids in three parts
    families          the four families at one number of trained parameters
    training          truncated back-propagation in memory, on a budget
    workbench         text, sizes, budget and models trained once, for all claims
    measures/         one file a claim: measure, judge by its criterion, two sentences, a picture
    catalogue, run    all claims, one after the other
    results, page     numbers → results.json → README.md

Knows nothing of bundles, HTTP or run folders.
"""
