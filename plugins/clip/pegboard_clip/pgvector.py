"""Vectors in PostgreSQL with the extension pgvector: one index for several machines."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from pegboard.errors import PegboardError

if TYPE_CHECKING:
    from pegboard.progress import Progress
    from pegboard.records import Array

Answer = TypeVar("Answer")

SECONDS = 10
"""Time that a database has to take a connection."""
MOST_FOR_GRAPH = 1000
"""Largest hnsw.ef_search; who wants more is answered exactly."""
EXACT_UP_TO = 10_000
"""Vectors below which no graph is made."""


class PostgresStore:
    """A table of vectors, searched by their inner product.

    Args:
        url: `postgresql://host/database`, without a password: PGPASSWORD or ~/.pgpass has it.
        name: What tells the table from those of other indexes.
        dimension: Numbers of a vector.

    Raises:
        MissingExtraError: psycopg or pgvector is not installed.
        PegboardError: The database does not answer, or has no extension `vector`.
    """

    def __init__(self, url: str, name: str, dimension: int) -> None:
        from pegboard.targets.support import require

        require("psycopg", "pgvector", what="keeping vectors in PostgreSQL")
        from psycopg import sql

        self.url, self.dimension = url, dimension
        self._table = sql.Identifier(f"pegboard_{name}")
        self._graph = sql.Identifier(f"pegboard_{name}_hnsw")
        self._connection: Any = None
        self._ask(self._make_table)

    def write(self, ids: Array, vectors: Array) -> None:
        """Insert or replace them."""
        pairs = [(int(one), vector) for one, vector in zip(ids, vectors, strict=True)]
        statement = self._sql(
            "INSERT INTO {table} (id, embedding) VALUES (%s, %s) "
            "ON CONFLICT (id) DO UPDATE SET embedding = EXCLUDED.embedding"
        )
        self._ask(lambda cursor: cursor.executemany(statement, pairs))

    def discard(self, ids: Array) -> None:
        """Delete them."""
        statement = self._sql("DELETE FROM {table} WHERE id = ANY(%s)")
        self._ask(lambda cursor: cursor.execute(statement, ([int(one) for one in ids],)))

    def clear(self) -> None:
        """Nothing is on this disk."""

    def drop(self) -> None:
        """Drop the table."""
        self._ask(lambda cursor: cursor.execute(self._sql("DROP TABLE IF EXISTS {table}")))

    def search(self, vector: Array, top: int) -> tuple[Array, Array]:
        """Ask for the nearest."""
        query = np.asarray(vector, dtype=np.float32)
        statement = self._sql(
            "SELECT id, -(embedding <#> %s) FROM {table} ORDER BY embedding <#> %s LIMIT %s"
        )

        def nearest(cursor: Any) -> list[tuple[int, float]]:
            # pgvector's graph returns no more than it has looked at.
            if top > MOST_FOR_GRAPH // 2:
                cursor.execute("SET LOCAL enable_indexscan = off")
            else:
                cursor.execute(f"SET LOCAL hnsw.ef_search = {max(128, 2 * top)}")
            cursor.execute(statement, (query, query, top))
            rows: list[tuple[int, float]] = cursor.fetchall()
            return rows

        rows = self._ask(nearest)
        ids = np.array([row[0] for row in rows], dtype=np.int64)
        return ids, np.array([row[1] for row in rows], dtype=np.float32)

    def read(self, ids: Array) -> Array:
        """Select them."""
        statement = self._sql("SELECT id, embedding FROM {table} WHERE id = ANY(%s)")

        def rows(cursor: Any) -> dict[int, Array]:
            cursor.execute(statement, ([int(one) for one in ids],))
            return {one: as_array(vector) for one, vector in cursor.fetchall()}

        found = self._ask(rows)
        return np.array([found[int(one)] for one in ids], dtype=np.float32)

    def optimise(self, progress: Progress) -> None:
        """Make the graph, once there is enough to search; PostgreSQL keeps it up to date."""

        def make(cursor: Any) -> None:
            cursor.execute(self._sql("SELECT count(*) FROM {table}"))
            if cursor.fetchone()[0] < EXACT_UP_TO:
                return
            cursor.execute(
                self._sql(
                    "CREATE INDEX IF NOT EXISTS {graph} ON {table} "
                    "USING hnsw (embedding vector_ip_ops)"
                )
            )

        with progress.task("build the graph in PostgreSQL"):
            self._ask(make)

    def refresh(self) -> None:
        """Nothing is kept here."""

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _sql(self, statement: str) -> Any:
        from psycopg import sql

        # Only names are put in here; values go beside the statement.
        return sql.SQL(statement).format(  # type: ignore[arg-type,unused-ignore]
            table=self._table, graph=self._graph, dimension=sql.Literal(self.dimension)
        )

    def _make_table(self, cursor: Any) -> None:
        cursor.execute(
            self._sql(
                "CREATE TABLE IF NOT EXISTS {table} "
                "(id bigint PRIMARY KEY, embedding vector({dimension}) NOT NULL)"
            )
        )

    def _ask(self, call: Callable[[Any], Answer]) -> Answer:
        """Have something done in a transaction; connect again once where the connection is lost.

        Raises:
            PegboardError: It cannot be done; the sentence says what PostgreSQL says.
        """
        import psycopg

        for is_last in (False, True):
            try:
                if self._connection is None:
                    self._connection = self._connect()
                with self._connection.transaction(), self._connection.cursor() as cursor:
                    return call(cursor)
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                self.close()
                if is_last:
                    raise self._problem(error) from error
            except psycopg.Error as error:
                raise self._problem(error) from error
        raise AssertionError("one of the two tries returns or raises")

    def _connect(self) -> Any:
        import psycopg
        from pgvector.psycopg import register_vector

        connection = psycopg.connect(self.url, connect_timeout=SECONDS, autocommit=True)
        try:
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
            register_vector(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _problem(self, error: Exception) -> PegboardError:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return PegboardError(
            f"PostgreSQL does not keep the vectors: {said}",
            where=self.url,
            remedy="start it, let this user in, and install pgvector there",
        )


def as_array(vector: Any) -> Array:
    """Return what pgvector gives for a vector, which is its own type since 0.4, as float32 (D,)."""
    values = vector.to_numpy() if hasattr(vector, "to_numpy") else vector
    return np.asarray(values, dtype=np.float32)
