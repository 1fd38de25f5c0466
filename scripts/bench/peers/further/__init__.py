"""Rivals that the benchmark of gains makes itself: learned, reusing, caching, judged."""
