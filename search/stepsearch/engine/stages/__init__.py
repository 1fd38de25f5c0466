"""What a run does one after the other: statistics, rivals, screening, teacher, search, …, test.

Each is a function of what it needs that returns what it found, and resumes from the cache.
"""
