"""What a person sees of a run: live progress, the table, the verdict, the files it leaves.

May import `compare` and what that may.
"""
