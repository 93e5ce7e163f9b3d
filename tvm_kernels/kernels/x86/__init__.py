"""Kernel rows for x86-64's vector and tile instructions."""
