"""Who places the workers of a run on a cluster: Ray, or SLURM through submitit.

They place and restart processes that do what `stepsearch worker --storage` does; what these work on
is coordinated by the storage alone.
"""
