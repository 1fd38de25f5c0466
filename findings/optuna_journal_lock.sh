#!/usr/bin/env bash
# Surprise: the lock of Optuna's journal is a symbolic link, and its age, by which a lock that a dead process
# left behind is taken over after a grace period, is that of the file it points to. Under a RELATIVE path in
# a folder the link points nowhere.
#
# JournalFileSymlinkLock, the default, makes the link "runs/journal.log.lock" -> "runs/journal.log". A link's
# target counts from the folder of the link, so that this one means runs/runs/journal.log: it has no age, and
# the documented release of such a lock does not come. With an absolute path it points to the journal.
#
# Whom: everybody whose storage is JournalFileBackend("some/folder/journal.log") and whose jobs can be killed.
# What to do: hand an absolute path to Optuna.
#
# Seen on 2026-11-28 (Optuna 5.0.0, Python 3.11, Linux):
#   runs/journal.log: link to runs/journal.log, which exists: False
#   /tmp/…/runs/journal.log: link to /tmp/…/runs/journal.log, which exists: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet optuna==5.0.0
mkdir runs
cat > show.py <<'P'
import os
import sys

import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

print("optuna", optuna.__version__)
found = []
for path in ("runs/journal.log", os.path.abspath("runs/journal.log")):
    JournalFileBackend(path)  # makes the file
    lock = JournalFileSymlinkLock(path)
    lock.acquire()
    link = path + ".lock"
    found.append(os.path.exists(link))  # whether what it points to does
    print(f"{path}: link to {os.readlink(link)}, which exists: {found[-1]}")
    lock.release()
sys.exit(0 if found == [False, True] else 1)
P
venv/bin/python show.py
