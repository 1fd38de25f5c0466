"""A schedule made better on the objective itself, by what each of its numbers does to features.

The steps, which of them are guided and the solver stay; levels, guidance scales, gains or weights
move. May import rivals and metrics, and what is below them.
"""
