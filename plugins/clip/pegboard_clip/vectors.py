"""Where vectors are kept: in a memory-mapped file, with a graph of faiss beside it, or elsewhere.

A store keeps vectors of unit length by number and finds those nearest to another. Which numbers
count is written in the index's SQLite database and nowhere else: whatever else a killed process
left behind is overwritten or never looked at.
"""

from __future__ import annotations

import io
import json
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pegboard.errors import DataError, SettingsError
from pegboard.files import atomic_path, disk_is_full, no_space_for

if TYPE_CHECKING:
    from pegboard.progress import Progress
    from pegboard.records import Array

BLOCK = 8192
"""Rows that a file of vectors grows by."""
AT_ONCE = 16_384
"""Rows that are copied or read at once."""

NEIGHBOURS = 32
"""Links of a vector in faiss's graph (M)."""
BUILD_EFFORT = 200
"""Candidates that are looked at when a vector is linked (efConstruction)."""
EFFORTS = (32, 48, 64, 96, 128, 192, 256, 384, 512, 1024)
"""Candidates that a search may look at (efSearch); the least that finds enough is taken."""
WANTED_RECALL = 0.99
"""Share of the true ten best that faiss has to find."""
TRIALS = 200
"""Searches that this is measured with."""


class Store(Protocol):
    """Keeps vectors by number."""

    def write(self, ids: Array, vectors: Array) -> None:
        """Keep vectors float32 (N, D) under ids int64 (N,); they are on the disk afterwards."""

    def discard(self, ids: Array) -> None:
        """Forget ids (N,); those that are not there do not matter."""

    def search(self, vector: Array, top: int) -> tuple[Array, Array]:
        """Return ids int64 (K,) and cosines float32 (K,) of the nearest, best first, K <= top."""

    def read(self, ids: Array) -> Array:
        """Return the vectors (N, D) of ids that are there."""

    def clear(self) -> None:
        """Forget what is on this disk, in the transaction that the caller is in."""

    def drop(self) -> None:
        """Remove what is in a database elsewhere, after nothing here refers to it any more."""

    def optimise(self, progress: Progress) -> None:
        """Do what makes searching faster, after many were written."""

    def refresh(self) -> None:
        """Take in what another process has written."""

    def close(self) -> None:
        """Let go of files and connections."""


@contextmanager
def transaction(database: sqlite3.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    """Commit what the block writes, or nothing of it; within another, be part of that."""
    if database.in_transaction:
        yield
        return
    database.execute(f"BEGIN {kind}")
    try:
        yield
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


def open_store(
    address: str, folder: Path, name: str, dimension: int, database: sqlite3.Connection
) -> Store:
    """Open a store.

    Args:
        address: `numpy`, `faiss`, or the URL of PostgreSQL or Qdrant.
        folder: The index's folder.
        name: What tells this index from others in the same database: letters and digits.
        dimension: Numbers of a vector.
        database: The index's own; what a store writes to it counts when it is committed.

    Raises:
        SettingsError: There is no such store.
        MissingExtraError: Its client is not installed.
        PegboardError: The database does not answer.
    """
    check_address(address)
    if address == "numpy":
        return ArrayStore(folder, dimension, database)
    if address == "faiss":
        return FaissStore(folder, dimension, database)
    if address.startswith(_POSTGRES):
        from pegboard_clip.pgvector import PostgresStore

        return PostgresStore(address, name, dimension)
    from pegboard_clip.qdrant import QdrantStore

    return QdrantStore(address, name, dimension)


_POSTGRES = ("postgresql://", "postgres://")
_SCHEMES = (*_POSTGRES, "http://", "https://")


def check_address(address: str) -> None:
    """Refuse what is no store.

    Raises:
        SettingsError: It is none, or it holds a password, which the index would keep.
    """
    if address not in ("numpy", "faiss") and not address.startswith(_SCHEMES):
        raise SettingsError(
            f"there is no store '{address}'",
            where="--store",
            remedy="write numpy, faiss, postgresql://HOST/DATABASE or http://HOST:6333 for Qdrant",
        )
    if re.match(r"[a-z]+://[^/@]*:[^/@]*@", address) or "password=" in address:
        raise SettingsError(
            "the address holds a password, which would be kept in the index",
            where="--store",
            remedy="leave it out and set PGPASSWORD, or QDRANT_API_KEY",
        )


# --------------------------------------------------------------------------- the file


class VectorFile:
    """A float32 `.npy` of (rows, dimension) that grows; `np.load` reads it at any moment.

    It says how many rows there is room for. Which of them count, the database knows: a row is
    written once, after all that count, so whoever has the file open never sees one change.

    Args:
        path: The file; it is made with the first row.
        dimension: Numbers of a row.
    """

    def __init__(self, path: Path, dimension: int) -> None:
        self.path, self.dimension = path, dimension
        self._offset = len(_header(0, dimension))

    def write(self, start: int, vectors: Array) -> None:
        """Write vectors (N, D) from row `start` on; they are on the disk when it returns.

        Raises:
            PegboardError: The disk is full; nothing that counts has changed.
        """
        try:
            with self.path.open("r+b" if self.path.exists() else "w+b") as stream:
                self._grow(stream, start + len(vectors))
                stream.seek(self._place(start))
                stream.write(np.ascontiguousarray(vectors, dtype=np.float32).tobytes())
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            if disk_is_full(error):
                raise no_space_for(self.path) from error
            raise

    def rows(self, count: int) -> Array:
        """Map the first `count` rows into memory, float32 (count, D), for reading.

        Raises:
            DataError: The file is shorter than that, or of other numbers.
        """
        if not count:
            return np.empty((0, self.dimension), dtype=np.float32)
        if not self.path.is_file() or self.path.stat().st_size < self._place(count):
            raise DataError(
                f"the index lacks vectors: {count} belong here",
                where=str(self.path),
                remedy="index again with 'pegboard index --again'",
            )
        return np.memmap(
            self.path, np.float32, "r", offset=self._offset, shape=(count, self.dimension)
        )

    def _grow(self, stream: Any, rows: int) -> None:
        """Make room in whole blocks; the header follows the room, so that it never says too much.

        The room costs no disk before it is written to.
        """
        room = -(-rows // BLOCK) * BLOCK
        size = stream.seek(0, os.SEEK_END)
        if size >= self._place(room):
            return
        stream.truncate(self._place(room))
        stream.seek(0)
        stream.write(_header(room, self.dimension))
        stream.flush()

    def _place(self, row: int) -> int:
        return self._offset + row * self.dimension * 4


def _header(rows: int, dimension: int) -> bytes:
    """Return NumPy's header, as long for any number of rows: NumPy leaves room for the count."""
    stream = io.BytesIO()
    described: Any = {"descr": "<f4", "fortran_order": False, "shape": (rows, dimension)}
    np.lib.format.write_array_header_1_0(stream, described)
    return stream.getvalue()


# --------------------------------------------------------------------------- NumPy

_TABLES = (
    "CREATE TABLE IF NOT EXISTS vectors (id INTEGER PRIMARY KEY, row INTEGER UNIQUE NOT NULL)",
    "CREATE TABLE IF NOT EXISTS vector_file (number INTEGER NOT NULL, rows INTEGER NOT NULL)",
)


class ArrayStore:
    """Exact search: all vectors times the query, in one memory-mapped file.

    A vector that is replaced or discarded leaves a hole in the file; when there are more holes than
    vectors, `optimise` writes a new file.

    Args:
        folder: Where the file is.
        dimension: Numbers of a vector.
        database: Says which row belongs to which id.
    """

    def __init__(self, folder: Path, dimension: int, database: sqlite3.Connection) -> None:
        self.folder, self.dimension, self.database = folder, dimension, database
        self._ids: Array | None = None  # (rows,), -1 for a hole.
        self._holes = np.empty(0, dtype=np.int64)  # The rows of the holes.
        self._vectors: Array = np.empty((0, dimension), dtype=np.float32)
        self._number = 0

    # ----------------------------------------------------------------- writing

    def write(self, ids: Array, vectors: Array) -> None:
        """Append them, and say in the database which rows they have."""
        self._make_tables()
        number, rows = self._state()
        self._file(number).write(rows, vectors)
        pairs = [(int(one), rows + place) for place, one in enumerate(ids)]
        self.database.executemany("INSERT OR REPLACE INTO vectors (id, row) VALUES (?, ?)", pairs)
        self.database.execute("UPDATE vector_file SET rows = ?", (rows + len(pairs),))
        self.refresh()

    def discard(self, ids: Array) -> None:
        """Leave holes where they were."""
        if self._has_tables():
            self.database.executemany(
                "DELETE FROM vectors WHERE id = ?", [(int(one),) for one in ids]
            )
            self.refresh()

    def clear(self) -> None:
        """Begin another file."""
        if self._has_tables():
            self.database.execute("DELETE FROM vectors")
            self.database.execute("UPDATE vector_file SET number = number + 1, rows = 0")
            self.refresh()

    def drop(self) -> None:
        """Nothing is elsewhere."""

    def optimise(self, progress: Progress) -> None:
        """Write a file without holes if there are more of them than vectors."""
        ids, vectors = self._view()
        live = np.flatnonzero(ids >= 0)
        if 2 * len(live) < len(ids):
            self._compact(ids, vectors, live)
        self._sweep()

    def _compact(self, ids: Array, vectors: Array, live: Array) -> None:
        file = self._file(self._number + 1)
        file.path.unlink(missing_ok=True)  # A killed process may have left it.
        for start in range(0, len(live), AT_ONCE):
            file.write(start, vectors[live[start : start + AT_ONCE]])
        with transaction(self.database):
            self.database.execute("DELETE FROM vectors")
            self.database.executemany(
                "INSERT INTO vectors (id, row) VALUES (?, ?)",
                ((int(one), row) for row, one in enumerate(ids[live])),
            )
            self.database.execute(
                "UPDATE vector_file SET number = number + 1, rows = ?", (len(live),)
            )
        self.refresh()

    def _sweep(self) -> None:
        """Remove the files of earlier numbers; who still has one open keeps it."""
        number, _ = self._state()
        for path in self.folder.glob("vectors-*.*"):
            if path.stem != f"vectors-{number}":
                path.unlink(missing_ok=True)

    # ----------------------------------------------------------------- reading

    def search(self, vector: Array, top: int) -> tuple[Array, Array]:
        """Multiply all vectors with the query."""
        ids, vectors = self._view()
        scores = vectors @ np.asarray(vector, dtype=np.float32)
        scores[self._holes] = -np.inf
        return best_of(scores, ids, min(top, len(ids) - len(self._holes)))

    def read(self, ids: Array) -> Array:
        """Read rows, without a look at all the others."""
        asked = "SELECT id, row FROM vectors WHERE id IN (SELECT value FROM json_each(?))"
        with transaction(self.database, "DEFERRED"):
            number, count = self._state()
            rows = dict(self.database.execute(asked, (json.dumps(ids.tolist()),)).fetchall())
            vectors = self._file(number).rows(count)
        return np.array(vectors[[rows[one] for one in ids.tolist()]])

    def refresh(self) -> None:
        """Read the rows again when they are next asked for."""
        self._ids = None

    def close(self) -> None:
        """Let go of the file."""
        self._vectors = np.empty((0, self.dimension), dtype=np.float32)
        self._ids = None

    def _view(self) -> tuple[Array, Array]:
        """Return the ids (rows,) and vectors (rows, D) that the database knows of."""
        if self._ids is None:
            # One transaction: nobody may begin another file between the number and the map.
            with transaction(self.database, "DEFERRED"):
                self._number, rows = self._state()
                self._vectors = self._file(self._number).rows(rows)
                self._ids = self._rows_of_ids(rows)
                self._holes = np.flatnonzero(self._ids < 0)
        return self._ids, self._vectors

    def _rows_of_ids(self, rows: int) -> Array:
        ids = np.full(rows, -1, dtype=np.int64)
        if rows:
            pairs = self.database.execute("SELECT row, id FROM vectors")
            table = np.fromiter(pairs, dtype=np.dtype((np.int64, 2)))
            ids[table[:, 0]] = table[:, 1]
        return ids

    # ----------------------------------------------------------------- the database

    def _make_tables(self) -> None:
        for table in _TABLES:
            self.database.execute(table)
        if self._has_no_file():
            self.database.execute("INSERT INTO vector_file (number, rows) VALUES (0, 0)")

    def _has_no_file(self) -> bool:
        return self.database.execute("SELECT 1 FROM vector_file").fetchone() is None

    def _has_tables(self) -> bool:
        asked = "SELECT 1 FROM sqlite_master WHERE name = 'vector_file'"
        return self.database.execute(asked).fetchone() is not None

    def _state(self) -> tuple[int, int]:
        """Return the number of the file and how many of its rows are written."""
        if not self._has_tables():
            return 0, 0
        found = self.database.execute("SELECT number, rows FROM vector_file").fetchone()
        return found or (0, 0)

    def _file(self, number: int) -> VectorFile:
        return VectorFile(self.folder / f"vectors-{number}.npy", self.dimension)


def best_of(scores: Array, ids: Array, top: int) -> tuple[Array, Array]:
    """Return the ids and scores of the `top` highest, best first; equal ones by id.

    Args:
        scores: float32 (N,).
        ids: int64 (N,).
        top: How many; all, if there are no more.
    """
    if 0 < top < len(scores):
        # All that score as high as the last one: which of them come in must not be chance.
        some = np.flatnonzero(scores >= np.partition(scores, len(scores) - top)[len(scores) - top])
    else:
        some = np.arange(len(scores))
    order = some[np.lexsort((ids[some], -scores[some]))][:top]
    return ids[order], scores[order]


# --------------------------------------------------------------------------- faiss


class FaissStore(ArrayStore):
    """The same file, with a graph of faiss (HNSW) over most of it: for more than a million.

    How far a search looks is chosen when the graph is made: the least effort that finds 0.99 of the
    true ten best, measured with vectors near those of this very index. Rows that came after the
    graph are searched exactly, so a graph that is old or gone costs time and no result.

    Source:
        Y. A. Malkov and D. A. Yashunin: Efficient and robust approximate nearest neighbor search
        using hierarchical navigable small world graphs. TPAMI 2018.
    """

    def __init__(self, folder: Path, dimension: int, database: sqlite3.Connection) -> None:
        super().__init__(folder, dimension, database)
        from pegboard.targets.support import require

        require("faiss", what="searching with faiss")
        self._graph: Any = None
        self._graph_stamp: tuple[int, ...] = ()

    def search(self, vector: Array, top: int) -> tuple[Array, Array]:
        """Search the graph, and exactly what is not in it."""
        ids, vectors = self._view()
        graph = self._open_graph()
        if graph is None or graph.ntotal > len(ids):
            return super().search(vector, top)
        query = np.asarray(vector, dtype=np.float32)
        covered = int(graph.ntotal)
        rows, scores = self._search_graph(graph, query, top)
        if covered < len(ids):
            tail = np.flatnonzero(ids[covered:] >= 0)
            rows = np.concatenate([rows, covered + tail])
            scores = np.concatenate([scores, (vectors[covered:] @ query)[tail]])
        return best_of(scores, ids[rows], top)

    def optimise(self, progress: Progress) -> None:
        """Bring the graph up to the file, and choose how far a search looks."""
        import faiss

        super().optimise(progress)
        ids, vectors = self._view()
        graph = self._open_graph()
        if not len(ids) or (graph is not None and graph.ntotal == len(ids)):
            return
        if graph is None or graph.ntotal > len(ids):
            graph = new_graph(self.dimension)
        starts = range(int(graph.ntotal), len(ids), AT_ONCE // 16)
        for start in progress.track(starts, "build the graph"):
            graph.add(np.ascontiguousarray(vectors[start : start + AT_ONCE // 16]))
        graph.hnsw.efSearch = effort_for(graph, vectors)
        with atomic_path(self._graph_path()) as temporary:
            faiss.write_index(graph, str(temporary))
        self._graph, self._graph_stamp = graph, self._stamp()

    def close(self) -> None:
        """Let go of the file and the graph."""
        super().close()
        self._graph, self._graph_stamp = None, ()

    def _search_graph(self, graph: Any, query: Array, top: int) -> tuple[Array, Array]:
        """Return rows and cosines; holes are walked through and not returned."""
        effort = max(graph.hnsw.efSearch, 2 * top)
        parameters = _parameters(effort, self._holes[self._holes < graph.ntotal])
        scores, rows = graph.search(query[None], min(top, graph.ntotal), params=parameters)
        found = rows[0] >= 0
        return rows[0][found], scores[0][found]

    def _open_graph(self) -> Any:
        """Return the graph on the disk, None where there is none for this file."""
        stamp = self._stamp()
        if stamp != self._graph_stamp:
            import faiss

            self._graph = faiss.read_index(str(self._graph_path())) if stamp else None
            self._graph_stamp = stamp
        return self._graph

    def _stamp(self) -> tuple[int, ...]:
        try:
            facts = self._graph_path().stat()
        except FileNotFoundError:
            return ()
        return self._number, facts.st_ino, facts.st_size, facts.st_mtime_ns

    def _graph_path(self) -> Path:
        return self.folder / f"vectors-{self._number}.faiss"


def new_graph(dimension: int) -> Any:
    """Return an empty graph for vectors of unit length."""
    import faiss

    graph = faiss.IndexHNSWFlat(dimension, NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = BUILD_EFFORT
    return graph


def effort_for(graph: Any, vectors: Array) -> int:
    """Return the least effort of a search that finds enough, measured beside exact search.

    Queries are made of the index's own vectors, moved towards another one: none of them is in the
    index, as no sentence and no sum of terms is. They are harder to find neighbours of than
    pictures that are alike, so these are found more surely than this demands.

    Args:
        graph: Of faiss, over all vectors.
        vectors: float32 (N, D).
    """
    chance = np.random.default_rng(0)
    first, second = chance.integers(len(vectors), size=(2, TRIALS))
    share = chance.uniform(0.6, 1.0, size=(TRIALS, 1)).astype(np.float32)
    queries = share * vectors[first] + (1 - share) * vectors[second]
    queries /= np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-12)
    true = _exact(queries, vectors, top=10)
    return next(
        (effort for effort in EFFORTS if recall_of(graph, queries, true, effort) >= WANTED_RECALL),
        EFFORTS[-1],
    )


def _parameters(effort: int, leave: Array | None = None) -> Any:
    """Return how far a search looks, and which rows it walks through without returning them."""
    import faiss

    library: Any = faiss  # Its types do not know what SWIG makes.
    if leave is None or not len(leave):
        return library.SearchParametersHNSW(efSearch=effort)
    others = library.IDSelectorNot(library.IDSelectorBatch(leave))
    return library.SearchParametersHNSW(efSearch=effort, sel=others)


def recall_of(graph: Any, queries: Array, true: Array, effort: int) -> float:
    """Return the share of the true rows (Q, K) that a search of that effort finds."""
    _, found = graph.search(queries, true.shape[1], params=_parameters(effort))
    pairs = zip(found, true, strict=True)
    return float(np.mean([len(set(a.tolist()) & set(b.tolist())) / len(b) for a, b in pairs]))


def _exact(queries: Array, vectors: Array, top: int) -> Array:
    """Return the rows (Q, K) of the nearest, a part of the file at a time."""
    best_scores = np.full((len(queries), 0), -np.inf, dtype=np.float32)
    best_rows = np.zeros((len(queries), 0), dtype=np.int64)
    for start in range(0, len(vectors), AT_ONCE):
        scores = queries @ vectors[start : start + AT_ONCE].T
        rows = np.broadcast_to(np.arange(start, start + scores.shape[1]), scores.shape)
        best_scores = np.concatenate([best_scores, scores], axis=1)
        best_rows = np.concatenate([best_rows, rows], axis=1)
        order = np.argsort(-best_scores, axis=1, kind="stable")[:, :top]
        best_scores = np.take_along_axis(best_scores, order, axis=1)
        best_rows = np.take_along_axis(best_rows, order, axis=1)
    return best_rows
