"""Random search over the settings of a config: many short trainings, each measured on validation text.

In: a config and what may vary in it. Out: a journal of trials, a table, and a picture of what mattered. Knows nothing
of what a setting means. The test part of a corpus is never looked at.

Source: Bergstra and Bengio, "Random search for hyper-parameter optimization", 2012.
"""
