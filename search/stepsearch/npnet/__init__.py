"""Learned golden noise for the model at hand: pairs of noise, and training on them.

May import metrics, and what is below them. The network and its files are the sampler's.
"""
