"""The dialect: functions of domain `subbyte`, with bodies in standard operators, for what ONNX has no operator for.

Each function is one file; `function` has the registry. `names` imports nothing, so that models do not need onnx.
"""
