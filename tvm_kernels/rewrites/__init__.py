"""The rewrite table, a file for each kind of rule; `lowering.py` runs them in stages."""
