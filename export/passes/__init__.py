"""Passes over traced ONNX graphs, one file each; :mod:`edgemem.export.pipeline` runs them in order."""
