"""Where a run's trials are kept, and how their workers are told alive from dead.

A journal in the run's folder, with the kernel's locks; or a database that other machines share.
"""
