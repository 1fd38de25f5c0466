"""AMED-Plugin: where a step is inserted, and what the network is told there, learned per image.

The predictor, the student that it steers, its training, its file, and the static form of averages.
"""
