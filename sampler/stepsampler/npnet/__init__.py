"""Learned golden noise: a network that makes better noise of noise, its files, their conversion.

It knows latents and texts by their shapes alone, and imports no model. torch loads in its modules.
"""
