"""The same bundles behind meari and behind other servers, measured side by side: `make bench`.

Input: options of the command line. Output: docs/benchmarks/. Must not know: anything but HTTP, except `bundles` (makes
the models), `inside` (onnxruntime alone, the engine in process, small probes) and `servers` (the other servers).
"""
