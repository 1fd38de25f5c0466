"""A run while it is under way: how far it is as data, as a view and as lines.

May import the rest of `report` and what that may.
"""
