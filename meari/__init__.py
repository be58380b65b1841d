"""meari: small recurrent language models, trained on your own text, exported to ONNX and served on ordinary CPUs."""
