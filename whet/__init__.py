"""whet finds, proves and applies the optimizations that a PyTorch or ONNX model is missing."""
