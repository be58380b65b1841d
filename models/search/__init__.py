"""Random search over the settings of a config: many short trainings, each measured on validation text.

Input: a config and ranges of some settings. Output: a journal of trials, a table, and a picture of the effect of each
setting. Must not know: the meaning of a setting, the test part of a corpus.

Source: Bergstra and Bengio, "Random search for hyper-parameter optimization", 2012.
"""
