"""One round of trouble for a run, and what must hold after it: see scripts/chaos.py."""
