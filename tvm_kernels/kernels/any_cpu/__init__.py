"""Kernel rows for any CPU and any C compiler."""
