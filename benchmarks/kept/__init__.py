"""Simulations whose results are kept: what is there and unchanged is not run again."""
