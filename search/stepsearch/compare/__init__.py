"""Anything against anything: contenders, their table, and the front over several runs.

May import `engine` and what that may.
"""
