"""The dialect: what ONNX cannot say, as functions of domain `subbyte` with bodies in standard operators.

A function is one file here; `function` has the register. `names` imports nothing, so that models need no onnx.
"""
