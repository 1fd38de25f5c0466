"""A PostgreSQL for the tests of a module that share one, and MLflow's tables for all others."""

import shutil

import pytest
from postgres import Postgres


@pytest.fixture(scope="module")
def server():
    postgres = Postgres()
    yield postgres
    postgres.remove()


@pytest.fixture
def name(request):
    """Of a run in it: the tests share a database."""
    return request.node.name[-60:].replace("[", "-").strip("]")


@pytest.fixture(scope="session", autouse=True)
def tables(tmp_path_factory):
    """MLflow makes its fifty steps once; later databases begin as copies of the first."""
    from sqlalchemy import make_url

    from stepsearch.engine.mirror import tables

    made, create = tmp_path_factory.mktemp("mlflow") / "mlflow.db", tables._create

    def copy(uri):
        if not made.exists():
            create(f"sqlite:///{made}")
        shutil.copyfile(made, make_url(uri).database)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "_create", copy)
        yield
