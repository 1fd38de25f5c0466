# Sourced by scripts/demo and scripts/test: makes .venv with the tested versions if there is none.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
stamp=.venv/installed
wanted=$(cat pyproject.toml constraints.txt | cksum)
if [ ! -x .venv/bin/python ] || [ "$(cat $stamp 2>/dev/null)" != "$wanted" ]; then
    echo "setting up .venv (once, a few minutes) ..."
    "${PYTHON:-python3}" -m venv .venv
    echo "  torch"
    # torch first and alone: only its exact version takes a CPU build that lies ready
    .venv/bin/python -m pip install --quiet -c constraints.txt torch
    echo "  what it needs besides"
    .venv/bin/python -m pip install --quiet -c constraints.txt -e '.[dev]'
    if .venv/bin/python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torchvision") is None)'; then
        echo "torchvision got into .venv; next to a CPU-only torch it breaks diffusers" >&2
        exit 1
    fi
    echo "$wanted" > $stamp
fi
export MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"  # idle threads give way to other processes
PATH="$PWD/.venv/bin:$PATH"
