"""From text files to token ids in a memory-mapped file.

Enters: the [corpus] and [tokenizer] tables of a config. Leaves: a tokenizer and one token file a part.
Knows nothing of models and torch. A corpus is streamed: no more than a few pieces of it are ever in memory.
"""
