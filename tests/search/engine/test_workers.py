"""Worker processes that die leave a sentence behind, and nothing that waits for them."""

import pytest

from stepsampler import UserError
from stepsearch.config import StudyConfig
from stepsearch.engine.workers import Workers


def test_a_run_whose_workers_die_ends_and_says_so(tmp_path):
    config = StudyConfig.model_validate({"name": "t", "space": {"num_steps": 3, "passes": 6}})

    def run():
        with Workers(config, tmp_path, ["cpu", "cpu"]) as workers:
            workers.describe()
            for process in list(workers._pool._processes.values()):
                process.kill()
            workers.describe()

    with pytest.raises(UserError, match="a worker process died"):
        run()
