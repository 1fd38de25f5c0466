"""A schedule made better by gradient steps on the objective itself.

The steps, which of them are guided and the solver stay; levels, guidance scales, gains or weights
move. May import rivals and metrics, and what is below them.
"""
