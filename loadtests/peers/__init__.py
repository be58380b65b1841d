"""The same bundles behind meari and behind its neighbours, measured side by side: `make bench`.

Enters: options of the command line. Leaves: docs/benchmarks/. Only `bundles` (makes the models), `inside` (raw, the
engine in process, small probes) and `servers` (the neighbours) know more than HTTP.
"""
