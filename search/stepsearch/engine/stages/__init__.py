"""What a run does one after the other: rivals, screening, teacher, search, polish, selection, test.

Each is a function of what it needs that returns what it found, and resumes from the cache.
"""
