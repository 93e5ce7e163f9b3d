"""ONNX files, whoever wrote them: `loader` reads and checks them, `onnxruntime` runs them."""
