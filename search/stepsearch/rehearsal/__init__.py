"""Before a run: what is missing, what it will cost, and a dry run on miniatures of the model.

May import `report` and what that may.
"""
