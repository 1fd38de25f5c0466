"""No deadline for examples of hypothesis: the machine may be busy with something else."""

import importlib.util

if importlib.util.find_spec("hypothesis"):  # .venv-fid has none
    from hypothesis import settings

    settings.register_profile("patient", deadline=None)
    settings.load_profile("patient")
