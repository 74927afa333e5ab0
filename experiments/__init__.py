"""Thin drivers: each is `python -m experiments.NAME`, with its command, cost and expected figures in its header."""
