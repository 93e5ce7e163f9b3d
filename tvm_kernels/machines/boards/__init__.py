"""Boards without an operating system, one a file. To add one: docs/add-a-target.md."""
