"""The rewrite table, one file a stage: foreign, standard, products, epilogues. `lowering.py` runs them in order."""
