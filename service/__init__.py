"""service/: bundle + requests → answers. Flask at the edge, the engine inside."""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before onnxruntime is imported: it would report every session to its makers
