"""Targets, one a file. To add one: docs/add-a-target.md."""
