"""Layers that torch does not have, or not in integers; each file is one layer."""
