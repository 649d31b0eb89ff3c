"""CLIP's search: how long one takes among 100,000 vectors of 512, exact and with faiss.

    make bench-clip, or: python benchmarks/clip_search.py [--only clustered|uniform] [--threads 1]

The index is a real one, with its SQLite database and its memory-mapped file. `plain product` is
`vectors @ query` and nothing else: no search can be exact and need less. NumPy has as many threads
as a user's has, one for each core, unless told otherwise; faiss has one, all that a single search
uses. Exact ones run by turns, and so do graphs, apart from one another: what reads all vectors
between two searches of a graph empties the caches, which no server does. Two kinds of vectors:
clustered ones, as trained towers give (a common direction, groups, and a spectrum that falls), and
uniform ones, whose neighbours are all equally far and which no graph searches well: nobody has such
pictures.

Vectors and graphs that were made before are kept in bench-results/clip_search.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pegboard.files import remove
from pegboard.logs import new_progress
from pegboard.progress import Progress
from pegboard.records import Array
from pegboard.timing import take_turns
from pegboard_clip.folders import Stamp
from pegboard_clip.index import Entry, Index

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "bench-results" / "clip_search"
TOP = 10
QUERIES = 500
AT_ONCE = 5000
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
GROUPS = 500
"""Of the clustered vectors."""


def main() -> None:
    """Measure what is asked for and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["clustered", "uniform"])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=20.0, help="For each of two tables.")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="Of NumPy.")
    parser.add_argument("--fresh", action="store_true", help="Make vectors and graphs anew.")
    asked = parser.parse_args()
    wanted = dict.fromkeys(THREADS, str(asked.threads))
    if not os.environ.items() >= wanted.items():  # They are read when NumPy is imported.
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | wanted)
    makers = {"clustered": clustered, "uniform": uniform}
    for kind, maker in makers.items():
        if asked.only in (None, kind):
            place = RESULTS / f"{kind}-{asked.count}-{asked.dimension}"
            if asked.fresh:
                remove(place)
            vectors = maker(asked.count + QUERIES, asked.dimension)
            for line in measured(place, vectors, asked.seconds, new_progress()):
                print(line, flush=True)


def clustered(count: int, dimension: int) -> Array:
    """Return vectors float32 (count, dimension) of unit length, as a trained tower spreads them.

    A common direction, because towers use a narrow cone; groups of unlike sizes; within a group as
    between groups, variance that falls with the direction's number.
    """
    chance = np.random.default_rng(0)
    spectrum = (1 + np.arange(dimension)) ** -0.6
    spectrum /= np.linalg.norm(spectrum)
    common = chance.normal(size=dimension)
    common /= np.linalg.norm(common)
    middles = chance.normal(size=(GROUPS, dimension)) * spectrum
    sizes = chance.dirichlet(np.full(GROUPS, 0.5))
    groups = chance.choice(GROUPS, size=count, p=sizes)
    found = np.empty((count, dimension), dtype=np.float32)
    for start in range(0, count, AT_ONCE):
        part = groups[start : start + AT_ONCE]
        spread = chance.normal(size=(len(part), dimension)) * spectrum
        found[start : start + AT_ONCE] = 0.8 * common + middles[part] + 0.7 * spread
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def uniform(count: int, dimension: int) -> Array:
    """Return vectors float32 (count, dimension) of unit length that point anywhere."""
    found = np.random.default_rng(0).standard_normal((count, dimension), dtype=np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def measured(place: Path, vectors: Array, seconds: float, progress: Progress) -> Iterator[str]:
    """Time searches for the last QUERIES of the vectors among the others."""
    import faiss

    library: Any = faiss
    library.omp_set_num_threads(1)
    queries, vectors = vectors[-QUERIES:], np.ascontiguousarray(vectors[:-QUERIES])
    exact = filled(place / "numpy", "numpy", vectors, progress)
    graph = filled(place / "faiss", "faiss", vectors, progress)
    flat = library.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    groups: list[dict[str, Callable[[Array], Any]]] = [
        {
            "plain product": lambda query: vectors @ query,
            "NumPy, exact": lambda query: exact._store.search(query, TOP),
            "index, exact": lambda query: exact.search(query, TOP),
            "faiss flat": lambda query: flat.search(query[None], TOP),
        },
        {
            "faiss HNSW": lambda query: graph._store.search(query, TOP),
            "index, faiss HNSW": lambda query: graph.search(query, TOP),
        },
    ]
    timings = {}
    for calls in groups:
        turns = {name: over(call, queries) for name, call in calls.items()}
        timings |= take_turns(turns, seconds=seconds)
    least = timings["plain product"].wall_ms(50)
    title = f"{place.name}, {os.environ[THREADS[0]]} threads"
    yield f"\n{title:<28}{'p50 ms':>9}{'p95 ms':>9}{'CPU ms':>9}{'to plain':>10}{'recall':>9}"
    true = [set(exact.search(query, TOP)) for query in queries]
    for name, timing in timings.items():
        found = {"index, exact": exact, "index, faiss HNSW": graph}.get(name)
        recall = "" if found is None else f"{recall_of(found, queries, true):.4f}"
        yield (
            f"{name:<28}{timing.wall_ms(50):>9.3f}{timing.wall_ms(95):>9.3f}"
            f"{timing.cpu_ms():>9.3f}{timing.wall_ms(50) / least:>10.3f}{recall:>9}"
        )
    effort = graph._store._open_graph().hnsw.efSearch  # type: ignore[attr-defined]
    yield f"efSearch {effort}, chosen when the graph was made"
    exact.close()
    graph.close()


def over(call: Callable[[Array], Any], queries: Array) -> Callable[[], Any]:
    """Return a call that takes another query each time."""
    turn = itertools.cycle(queries)
    return lambda: call(next(turn))


def recall_of(index: Index, queries: Array, true: list[set[Any]]) -> float:
    """Return the share of the true best that an index finds."""
    found = ({match.id for match in index.search(query, TOP)} for query in queries)
    pairs = zip(found, true, strict=True)
    return float(np.mean([len(some & {match.id for match in best}) / TOP for some, best in pairs]))


def filled(folder: Path, store: str, vectors: Array, progress: Progress) -> Index:
    """Return an index of these vectors, made now or before."""
    if folder.is_dir():
        return Index(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    index = Index.create(folder, model="benchmark", dimension=vectors.shape[1], store=store)
    root = index.declare(folder)
    for start in progress.track(range(0, len(vectors), AT_ONCE), f"write {folder.name}"):
        part = vectors[start : start + AT_ONCE]
        stamp = Stamp(size=0, modified=0)
        rows = range(start, start + len(part))
        index.add(root, [Entry(path=f"{n}.jpg", stamp=stamp, digest=str(n)) for n in rows], part)
    began = time.perf_counter()
    index.optimise(progress)
    progress.say(f"{store}: ready to search after {time.perf_counter() - began:.0f} s more")
    return index


if __name__ == "__main__":
    main()
