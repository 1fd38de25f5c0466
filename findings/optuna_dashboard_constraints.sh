#!/usr/bin/env bash
# Surprise: optuna-dashboard shows no constraint that was set the way Optuna 5 recommends. Such trials all
# look feasible, also the one that breaks its constraint.
#
# Optuna 5 deprecates the samplers' `constraints_func` in favour of `Trial.set_constraint(name, value)`, which
# writes a system attribute "constraints:name". The dashboard reads the old one, "constraints", a list, and
# `constraints` of its API is empty.
#
# Whom: everybody who marks infeasible trials with Optuna 5 and looks at them in the dashboard.
# What to do: write the list as well, `storage.set_trial_system_attr(trial._trial_id, "constraints", [value])`,
# and mind that Optuna's samplers then see the constraint twice.
#
# Seen on 2026-11-29 (Optuna 5.0.0, optuna-dashboard 0.21.0, Python 3.11, Linux):
#   Optuna: {'limit': 1.0}; the dashboard: []
#   with the list too, Optuna: {'0': 1.0, 'limit': 1.0}; the dashboard: [1.0]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet optuna==5.0.0 optuna-dashboard==0.21.0
cat > show.py <<'P'
import json
import sys
from io import BytesIO

import optuna
import optuna_dashboard

print("optuna", optuna.__version__, "optuna-dashboard", optuna_dashboard.__version__)
study = optuna.create_study()
for listed in (False, True):
    trial = study.ask()
    trial.set_constraint("limit", 1.0)  # above 0: infeasible
    if listed:
        study._storage.set_trial_system_attr(trial._trial_id, "constraints", [1.0])
    study.tell(trial, 0.0)

app = optuna_dashboard.wsgi(study._storage)
request = {"REQUEST_METHOD": "GET", "PATH_INFO": f"/api/studies/{study._study_id}", "QUERY_STRING": "after=0"}
request |= {"SERVER_NAME": "x", "SERVER_PORT": "80", "wsgi.input": BytesIO(), "wsgi.errors": sys.stderr}
answer = json.loads(b"".join(app(request | {"wsgi.url_scheme": "http"}, lambda *_: None)))
seen = [trial["constraints"] for trial in answer["trials"]]
known = [trial.constraints for trial in study.trials]
print(f"Optuna: {known[0]}; the dashboard: {seen[0]}")
print(f"with the list too, Optuna: {known[1]}; the dashboard: {seen[1]}")
sys.exit(0 if seen == [[], [1.0]] and known[0] == {"limit": 1.0} else 1)
P
venv/bin/python show.py
