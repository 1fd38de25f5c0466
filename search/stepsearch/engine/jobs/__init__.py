"""What a run measures outside its search: which kinds of jobs there are, and who does them.

A job is a trial of a second Optuna study in the storage of the run's trials, its result a parcel.
"""
