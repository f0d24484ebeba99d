"""The tests' own PostgreSQL: what was committed outlives a kill."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy

if TYPE_CHECKING:
    from postgres import Postgres


def test_what_was_committed_outlives_a_kill(postgres: Postgres) -> None:
    engine = sqlalchemy.create_engine(postgres.database())
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE kept (number int)"))
        connection.execute(sqlalchemy.text("INSERT INTO kept VALUES (7)"))
    engine.dispose()
    postgres.kill()
    postgres.start()
    with engine.begin() as connection:
        assert connection.execute(sqlalchemy.text("SELECT number FROM kept")).scalar_one() == 7
    engine.dispose()
