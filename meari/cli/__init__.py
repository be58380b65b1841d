"""The command line: one verb a stage, each a thin file; `meari.cli.main` finds them."""
