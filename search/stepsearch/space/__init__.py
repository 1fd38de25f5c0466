"""A fixed box of numbers <-> schedules, and the points from which a search starts.

May import `rivals` and what that may.
"""
