"""Search few-step sampling schedules and prove them on held-out seeds."""

from types import ModuleType
from typing import TYPE_CHECKING, Any

from stepsearch import api
from stepsearch.api import Results, evaluate, run

if TYPE_CHECKING:
    from stepsearch.api import compare, report
    from stepsearch.space.box import SearchSpace
else:
    from stepsearch import compare, report

    class _Wing(ModuleType):
        """A wing whose name is a verb as well: called, it is the function of that name."""

        def __call__(self, *what: Any, **options: Any) -> Results:
            return getattr(api, self.__name__.rpartition(".")[2])(*what, **options)

    for _wing in (compare, report):
        _wing.__class__ = _Wing

    def __getattr__(name: str) -> Any:
        if name != "SearchSpace":  # which loads torch
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from stepsearch.space.box import SearchSpace

        return SearchSpace


__all__ = ["Results", "SearchSpace", "compare", "evaluate", "report", "run"]
