"""What `worker.py` and `storage.py` measure with."""
