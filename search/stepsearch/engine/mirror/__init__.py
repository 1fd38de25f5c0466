"""What MLflow gets of a run: the store, the records in it, and on demand a registered model.

Knows a run by its folder, its Optuna study and its result file; `engine.tracking` calls it while a
run is under way, `stepsearch sync` afterwards, and both write the same.
"""
