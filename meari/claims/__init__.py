"""The lecture's claims about recurrent language models, measured, on a page with a picture a claim.

Input: text, or none; a time budget. Output: a folder with `README.md`, a PNG a claim and `results.json`.
Must not know: bundles, HTTP, run folders.

    text         files, or a text made here → token ids in three parts
    families     the four families at one number of trained parameters, and the multiply-adds of their trainings
    training     truncated back-propagation in memory, on a budget; the readout of a reservoir in one pass
    evaluation   loss of held-out text, written samples and their repetitions
    workbench    text, sizes, budget and trained models, shared by all claims with one seed
    measures/    one file a claim: measure and judge each seed; two sentences and a picture of all
    claim        criteria and verdicts; figures with the noise of their seeds
    run          all claims for every seed, one after the other
    results, page, pictures     numbers → results.json → README.md and its pictures
"""
