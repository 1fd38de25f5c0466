"""What `scripts/gpu_check` measures: each file has some rows of its table."""
