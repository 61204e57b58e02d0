"""The ways in: how a model written elsewhere becomes a `whet.ir.Graph`.

One module a source: torch programs, ONNX files, and `zoo`, the models whet is measured on.
"""
