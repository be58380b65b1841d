"""The bundle on disk, as training and serving both know it. No torch, no onnxruntime, no HTTP."""
