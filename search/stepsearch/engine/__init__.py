"""The search itself: trials, algorithms, rungs, workers, tracking, and the stages of a run.

May import `space` and what that may.
"""
