"""A schedule made better on the objective itself, by gradients or by values alone.

The steps, which of them are guided and the solver stay; levels, guidance scales, gains or weights
move. May import rivals and metrics, and what is below them.
"""
