"""Kernel rows for Arm's DSP extension (Cortex-M4 and after)."""
