#!/usr/bin/env bash
# Surprise: a lock of Optuna's journal that a kill leaves behind is «forcibly released» after its grace
# period, 30 seconds by default, says the documentation. Under a RELATIVE path in a folder it never is.
#
# JournalFileSymlinkLock, the default, makes the link "runs/journal.log.lock" -> "runs/journal.log". A
# link's target counts from the folder of the link, so that this one means runs/runs/journal.log and points
# nowhere. Whoever waits asks for the age of the target, gets "no such file", and tries again at once, for
# ever and at full speed: every later command of the same study hangs, with no message but one that it
# takes long. With an absolute path the lock is taken over.
#
# Whom: everybody whose storage is JournalFileBackend("some/folder/journal.log") and whose jobs can be
# killed. What to do: hand an absolute path to Optuna.
#
# Seen on 2026-11-28 (Optuna 5.0.0, Python 3.11, Linux):
#   runs/journal.log
#     link to runs/journal.log, which exists: False
#     a grace period of 3 seconds: not taken over in 30 seconds
#   /tmp/…/runs/journal.log
#     link to /tmp/…/runs/journal.log, which exists: True
#     a grace period of 3 seconds: taken over after 3 seconds
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet optuna==5.0.0
mkdir runs
cat > show.py <<'P'
import os
import subprocess
import sys
import time

import optuna
from optuna.storages.journal import JournalFileSymlinkLock

print("optuna", optuna.__version__)
GRACE = 3
KILLED = (
    "import os, sys; from optuna.storages.journal import JournalFileSymlinkLock as L; "
    "L(sys.argv[1]).acquire(); os._exit(9)"  # as SIGKILL would end it
)
WAITS = (
    f"import sys; from optuna.storages.journal import JournalFileSymlinkLock as L; "
    f"L(sys.argv[1], grace_period={GRACE}).acquire()"
)
found = []
for path in ("runs/journal.log", os.path.abspath("runs/journal.log")):
    optuna.storages.journal.JournalFileBackend(path)  # makes the file
    subprocess.run([sys.executable, "-c", KILLED, path])
    link = path + ".lock"
    began = time.monotonic()
    try:
        subprocess.run([sys.executable, "-c", WAITS, path], timeout=30, capture_output=True)
        end = f"taken over after {time.monotonic() - began:.0f} seconds"
    except subprocess.TimeoutExpired:
        end = "not taken over in 30 seconds"
    print(f"{path}\n  link to {os.readlink(link)}, which exists: {os.path.exists(link)}")
    print(f"  a grace period of {GRACE} seconds: {end}")
    found.append((os.path.exists(link), end.startswith("taken")))
    os.unlink(link)
sys.exit(0 if found == [(False, False), (True, True)] else 1)
P
venv/bin/python show.py
