"""A PostgreSQL for the tests of a module that share one."""

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
