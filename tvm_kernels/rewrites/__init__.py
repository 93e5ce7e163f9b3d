"""The rewrite table, a file for each kind of rule; `lowering.py` applies it in stages."""
