"""The public Python API: one object for a model, here or at a service; a wrapper of training.

From the top down, each layer above those that it uses:

    opening.py         a name, a path or a URL → a language model
    training.py        texts → a run → a bundle, as `meari train` makes them
    language_model.py  the methods of a model, wherever it runs
    local.py           a model in engines of this process; remote.py: a model of a running service
    surprisal.py       figures of tokens, words and characters as a table; shading.py: the table as HTML
    arguments.py       keyword arguments → checked requests

`meari` itself imports none of this before it is used. Must not know: torch, HTTP servers.
"""
