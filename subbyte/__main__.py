"""`python -m subbyte` is the command line."""

from subbyte.cli import main

main(prog_name="subbyte")
