"""Boards without an operating system, a file each."""
