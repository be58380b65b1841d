"""Text: files of text → token ids in memory-mapped files.

Input: the [corpus] and [tokenizer] tables of a config. Output: a tokenizer and one token file a part. Must not know:
models, torch. A corpus is streamed: only a few pieces of it are in memory at a time.
"""
