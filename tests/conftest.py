"""What holds for all tests."""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # tests import onnxruntime themselves, and before the project does
