"""Empirical statistics of a model, and DPM-Solver-v3, which goes by them; below what samples.

`file` reads, writes and checks them, `solver` computes the updates.
"""
