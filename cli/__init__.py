"""The command line: one verb a stage, each a thin file; `cli.main` finds them."""
