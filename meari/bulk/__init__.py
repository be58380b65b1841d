"""Bulk work: files or pipes of any size in; JSONL, TSV, Parquet or text out, in the order of the input.

Input: lines of text or JSONL, a bundle or a running service, options. Output: one record a line, a summary, and beside
an output file a journal from which an interrupted run continues. Must not know: Flask, gunicorn, training, export.

One process cuts lines and puts results in order:

    source.py, lines.py      files one after another → unpacked bytes → chunks of whole lines
    parquet.py               rows of Parquet → lines
    parquet_output.py        lines → rows of Parquet
    worker_pool.py           chunks to the workers, results back in order
    output.py                a file or a pipe, and the journal of how far a file is
    plan.py                  what is to be done, and its result
    run.py, progress.py      all of it together, and the progress bar
    filtering.py             scored lines → parts of a corpus

On a Ray cluster actors do both, for a part of the input each:

    storage.py               files at paths and URLs, the output folder
    partitions.py            files → ranges of lines
    commits.py               a range → its parts of the output, committed once
    ray_cluster.py           items to tasks and actors of Ray
    ray_engine.py            ranges to actors, and the manifest
    ray_filter.py            thresholds of a corpus, and its ranges in parts

A worker process for each CPU has a backend:

    worker.py, records.py    frames → lines → records, bad lines by number
    backends.py, remote.py   an engine here, or a service elsewhere (then one worker sends all requests)
    score.py, score_rows.py  texts → figures → bytes
    long_text.py             the same of one line of any length, piece by piece; long_words.py joins its words
    generate.py              prompts → continuations → bytes; also of one prompt
    rows.py                  the input's fields in an output record; cells of TSV

Both know options.py, totals.py, frames.py (their messages) and errors.py.

A *chunk* is some whole lines; its size changes nothing in the results.
"""
