"""subbyte."""
