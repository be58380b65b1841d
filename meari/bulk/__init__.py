"""Bulk work: files or pipes of any size in, JSONL, TSV or text out in the order of the input.

What enters: lines of text or JSONL, a bundle or a running service, options. What leaves: one record a line, a summary,
and beside an output file a journal from which an interrupted run goes on. Knows nothing of Flask, gunicorn, training or
export.

One process cuts lines and puts results in order:

    source.py, packing.py    files one after another, unpacked
    lines.py                 bytes → chunks of whole lines
    crew.py                  chunks to the workers, results back in order
    output.py, journal.py    to a file or a pipe; how far a file is
    display.py, run.py       the progress bar; all of it together

A worker process for each CPU runs an engine:

    worker.py, records.py    frames → lines → records, bad lines by number
    score.py, score_rows.py  texts → figures → bytes
    long_*.py, borders.py    the same of one line of any length, piece by piece
    generate*.py             prompts → continuations → bytes; one_prompt.py: one, as it comes
    served*.py               the same by asking a running service, one worker process for all requests
    carried.py, tsv.py       what of an input line stands in its record; cells

Both know options.py, names.py, totals.py, frames.py (what they say to one another) and errors.py.

A *chunk* is some whole lines; its size changes nothing in the results. Figures are the service's own.
"""
