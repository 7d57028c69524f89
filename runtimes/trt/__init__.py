"""TensorRT and TensorRT-RTX: engines from a bundle, checked before they are loaded."""
