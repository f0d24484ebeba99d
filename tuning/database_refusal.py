"""What a database says to whom it will not let in, however long they wait: told from one that is away for a while."""

from __future__ import annotations

import re

from sqlalchemy.exc import DBAPIError

# PostgreSQL gives no SQLSTATE for a connection that it refuses, only its words; of its poolers too. Those that are not known
# here, such as another language's, are waited for as an outage is.
_REFUSED = re.compile(
    r"authentication failed"
    r"|no password supplied"
    r"|(role|user|database) \".*\" does not exist"
    r"|no such (user|database)"
    r"|pg_hba\.conf (entry|rejects)"
    r"|is not permitted to log in"
    r"|permission denied for database"
    r"|server does not support SSL"
    r"|certificate verify failed"
)


def refusal(error: BaseException) -> str | None:
    """The line in which the database refused this user, password or database name; None for an outage, and all else."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, DBAPIError):
            for line in str(seen.orig).splitlines():
                if _REFUSED.search(line):
                    return line.partition("FATAL:")[2].strip() or line.strip()
        seen = seen.__cause__ or seen.__context__
    return None
