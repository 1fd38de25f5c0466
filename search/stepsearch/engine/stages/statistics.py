"""Before the model is loaded to be measured: the statistics that the run makes of it itself."""

from pathlib import Path

from stepsampler.errors import counted
from stepsearch.config import StudyConfig
from stepsearch.engine.stages.tools import Report
from stepsearch.engine.workers import Workers
from stepsearch.space.statistics import passes_of_own, samples_done


def make_statistics(config: StudyConfig, workers: Workers, report: Report) -> None:
    """Have a worker make those of the study that are not in the run's folder yet."""
    options = config.statistics
    if not options.files or all(Path(file).exists() for file in config.model.statistics):
        return
    total = options.samples * len(options.files)

    def heard(news: str = "") -> None:
        report("statistics", samples_done(config), total, news)

    heard(f"{counted(total, 'sample')}, at most {passes_of_own(config):,} network passes")
    for sentence in workers.statistics(heard):
        heard(sentence)
