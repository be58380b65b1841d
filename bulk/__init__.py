"""Bulk work without HTTP: files or pipes of any size in, JSONL, TSV or text out in the order of the input.

What enters: lines of text or JSONL, a bundle, options. What leaves: one record a line, a summary, and beside an output
file a journal from which an interrupted run goes on. Knows nothing of Flask, gunicorn, training or export.

    one process cuts lines and puts results in order      a worker process for each CPU runs the engine
    ------------------------------------------------      ----------------------------------------------
    lines.py       bytes → chunks of whole lines           worker.py   frames → work → frames
    source.py      where the bytes come from               records.py  a chunk → records, bad lines by number
    crew.py        hands chunks out, order restored        score.py    texts → figures
    output.py      bytes to a file or a pipe               long_text.py  a line of any length, piece by piece
    journal.py     how far a file is; resumption           generate.py prompts → continuations
    totals.py      sums over the whole run                 rows.py, tsv.py   records and figures → bytes
    display.py     the progress bar
    run.py         all of it together

    frames.py      what the processes say to one another
    options.py     what a run is told to do

A *chunk* is some whole lines; its size changes nothing in the results. Figures are the service's own.
"""
