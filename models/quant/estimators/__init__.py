"""The methods by which weights and activations are quantized, one a file: its quantizers, their gradient, its names.

A file of this folder is found by itself: `subbyte.models.quant` imports every one (docs/add-a-scheme.md).
"""
