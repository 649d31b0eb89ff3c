"""The index of a collection of pictures: their files in SQLite, their embeddings in a store.

What a commit of the database says is there, is there: vectors are on the disk before it. A process
that is killed loses the batch that it was at, and the next one goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from pegboard.errors import DataError
from pegboard.files import atomic_path, locked, remove
from pegboard_clip.folders import Look, Stamp, look_through, read_inside
from pegboard_clip.images import fitted, read_image
from pegboard_clip.vectors import Store, check_address, open_store, transaction

if TYPE_CHECKING:
    from pegboard.progress import Progress
    from pegboard.records import Array

Item = TypeVar("Item")
Result = TypeVar("Result")

DATABASE = "index.db"
FORMAT = "1"
BATCH = 32
"""Pictures that are embedded at once, and committed."""
SECONDS = 30
"""Time that a reader waits for a writer's commit."""
PIXELS = 100_000_000
"""Most pixels of a picture."""

_SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE roots (id INTEGER PRIMARY KEY, path BLOB UNIQUE NOT NULL);
CREATE TABLE pictures (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    root INTEGER NOT NULL REFERENCES roots (id),
    path BLOB NOT NULL,
    size INTEGER NOT NULL,
    modified INTEGER NOT NULL,
    digest TEXT NOT NULL,
    UNIQUE (root, path)
);
CREATE INDEX pictures_by_digest ON pictures (digest);
CREATE TABLE discarded (id INTEGER PRIMARY KEY);
"""


class Encoder(Protocol):
    """What embeds pictures and texts in one space; `encoder.py` opens it from a bundle."""

    @property
    def model(self) -> str:
        """Digest of what computes: vectors of another one mean something else."""

    @property
    def dimension(self) -> int:
        """Numbers of an embedding, D."""

    @property
    def size(self) -> int:
        """Side of a picture in pixels, S."""

    def images(self, images: Array) -> Array:
        """Embed uint8 (N, S, S, 3) as float32 (N, D) of unit length."""

    def texts(self, texts: Sequence[str]) -> Array:
        """Embed N texts as float32 (N, D) of unit length."""

    def warning(self, text: str) -> str:
        """Return a sentence if the vocabulary does not know a text's script, or ''."""


@dataclass(frozen=True, kw_only=True)
class _File:
    """Where a file of the index lies."""

    id: int
    """Never given to another file, not even when this one is gone."""
    root: Path
    """The declared folder that it lies in."""
    path: str
    """Below the root, with `/`."""

    @property
    def name(self) -> str:
        """The path as it can be shown: a name that is no text is shown with replacements."""
        return os.fsencode(self.path).decode("utf-8", "replace")

    @property
    def file(self) -> Path:
        """Where it is."""
        return self.root / self.path


@dataclass(frozen=True, kw_only=True)
class Picture(_File):
    """A file that is in the index."""

    stamp: Stamp
    """Of the file when it was embedded."""
    digest: str
    """SHA-256 of what was in it."""


@dataclass(frozen=True, kw_only=True)
class Match(_File):
    """A picture that was found."""

    score: float
    """Cosine to the query: good for an order, not for saying whether anything was found."""


class Index:
    """An index that is open; several threads may use it, and one process may write to it.

    Args:
        folder: The index's folder.

    Raises:
        DataError: There is none, or it was made by a later version.
        MissingExtraError: What its store needs is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / DATABASE
        if not path.is_file():
            raise DataError(
                "there is no index",
                where=str(folder),
                remedy="make it with 'pegboard index FOLDER'",
            )
        self._lock = threading.RLock()
        self._database = _connect(path)
        try:
            self._store = self._open_store()
        except BaseException:
            self._database.close()
            raise
        self._version = self._data_version()

    @classmethod
    def create(cls, folder: Path, *, model: str, dimension: int, store: str = "numpy") -> Index:
        """Make an empty index.

        Args:
            folder: It is made; it may be there if nothing is in it.
            model: The digest of the model whose vectors come in.
            dimension: Numbers of a vector.
            store: `numpy`, `faiss`, or the URL of PostgreSQL or Qdrant.

        Raises:
            DataError: Something else is in the folder.
            SettingsError: There is no such store.
        """
        check_address(store)
        if folder.is_dir() and any(folder.iterdir()):
            raise DataError(
                "the folder holds something else than an index",
                where=str(folder),
                remedy="choose another with --index",
            )
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            database = sqlite3.connect(temporary / DATABASE)
            database.executescript(_SCHEMA)
            facts = {
                "format": FORMAT,
                "name": uuid.uuid4().hex[:16],
                "model": model,
                "dimension": str(dimension),
                "store": store,
            }
            database.executemany("INSERT INTO facts VALUES (?, ?)", facts.items())
            database.commit()
            database.close()
        try:
            return cls(folder)
        except BaseException:  # Its store cannot be used; another one may be tried.
            remove(folder)
            raise

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return int(self._one("SELECT count(*) FROM pictures")[0])

    def close(self) -> None:
        """Let go of files and connections."""
        with self._lock:
            self._store.close()
            self._database.close()

    # ----------------------------------------------------------------- asking

    def require(self, encoder: Encoder) -> None:
        """Refuse vectors of another model.

        Raises:
            DataError: The index was made with another one.
        """
        with self._lock:
            self._take_in()
        if (self.model, self.dimension) != (encoder.model, encoder.dimension):
            raise DataError(
                f"the index was made with another model: {self.model[:12]} of {self.dimension} "
                f"numbers, and this is {encoder.model[:12]} of {encoder.dimension}",
                where=str(self.folder),
                remedy="index again with 'pegboard index --again', or open the other bundle with "
                "--bundle",
            )

    def roots(self) -> list[Path]:
        """Return the declared folders, absolute."""
        return [_folder(path) for (path,) in self._all("SELECT path FROM roots")]

    def search(self, vector: Array, top: int) -> list[Match]:
        """Return the pictures nearest to a vector (D,) of unit length, best first."""
        with self._lock:
            self._take_in()
            wanted = top
            while True:
                ids, scores = self._store.search(vector, wanted)
                known = self._pictures(ids.tolist())
                # A database may still hold what the index has forgotten.
                if len(known) >= min(top, len(ids)) or len(ids) < wanted:
                    break
                wanted *= 2
        pairs = zip(ids.tolist(), scores.tolist(), strict=True)
        return [_match(known[one], score) for one, score in pairs if one in known][:top]

    def picture(self, identity: int) -> Picture | None:
        """Return a picture, None where there is none of that id."""
        with self._lock:
            return self._pictures([identity]).get(identity)

    def vector(self, identity: int) -> Array | None:
        """Return the embedding (D,) of a picture, None where there is none of that id."""
        with self._lock:
            self._take_in()
            if identity not in self._pictures([identity]):
                return None
            vector: Array = self._store.read(np.array([identity]))[0]
            return vector

    def newest(self, top: int) -> list[Match]:
        """Return the pictures that came last, without an order of likeness."""
        ids = [one for (one,) in self._all("SELECT id FROM pictures ORDER BY id DESC LIMIT ?", top)]
        with self._lock:
            known = self._pictures(ids)
        return [_match(known[one], 0.0) for one in ids if one in known]

    def known(self, root: Path) -> dict[str, Picture]:
        """Return the pictures of a declared folder by their path."""
        rows = self._all(f"{_PICTURES} WHERE roots.path = ?", os.fsencode(root))
        return {picture.path: picture for picture in map(_picture, rows)}

    def digests(self) -> set[str]:
        """Return the digests of all pictures."""
        return {digest for (digest,) in self._all("SELECT DISTINCT digest FROM pictures")}

    # ----------------------------------------------------------------- writing

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep other processes from writing, and finish what a killed one has begun.

        Raises:
            RunLockedError: Another process writes.
        """
        what = "another process is writing to this index"
        with locked(self.folder, what=what, remedy="wait for it"):
            self._forget_discarded()
            yield

    def declare(self, folder: Path) -> Path:
        """Make a folder one of those whose pictures are in the index.

        Returns:
            The declared folder: an earlier one, if it holds this one.

        Raises:
            DataError: It holds an earlier one.
        """
        folder = folder.resolve()
        for root in self.roots():
            if folder.is_relative_to(root):
                return root
            if root.is_relative_to(folder):
                raise DataError(
                    f"a folder in it is in the index already: {root}",
                    where=str(folder),
                    remedy=f"take that out with 'pegboard index --forget {root}', and try again",
                )
        with self._lock, transaction(self._database):
            self._database.execute("INSERT INTO roots (path) VALUES (?)", (os.fsencode(folder),))
        return folder

    def forget(self, root: Path) -> int:
        """Take a declared folder out of the index; return how many pictures it had.

        Raises:
            DataError: It is none.
        """
        root = root.resolve()
        if root not in self.roots():
            declared = ", ".join(map(str, self.roots())) or "none"
            raise DataError(
                "the folder is not in the index",
                where=str(root),
                remedy=f"name one that is: {declared}",
            )
        ids = [picture.id for picture in self.known(root).values()]
        self.remove(ids)
        with self._lock, transaction(self._database):
            self._database.execute("DELETE FROM roots WHERE path = ?", (os.fsencode(root),))
        return len(ids)

    def add(self, root: Path, entries: Sequence[Entry], vectors: Array) -> list[int]:
        """Add pictures, or replace those of the same path.

        Args:
            root: A declared folder.
            entries: N files in it.
            vectors: float32 (N, D) of unit length.

        Returns:
            Their ids.
        """
        statement = (
            "INSERT INTO pictures (root, path, size, modified, digest) "
            "SELECT id, ?, ?, ?, ? FROM roots WHERE roots.path = ? "
            "ON CONFLICT (root, path) DO UPDATE SET size = excluded.size, "
            "modified = excluded.modified, digest = excluded.digest RETURNING id"
        )
        ids = []
        with self._lock, transaction(self._database):
            for entry in entries:
                facts = (entry.stamp.size, entry.stamp.modified, entry.digest, os.fsencode(root))
                row = (os.fsencode(entry.path), *facts)
                ids += [one for (one,) in self._database.execute(statement, row).fetchall()]
            if ids:
                self._store.write(np.array(ids), vectors)
        return ids

    def touch(self, identity: int, stamp: Stamp) -> None:
        """Note that a file has another stamp and the same content."""
        with self._lock, transaction(self._database):
            self._database.execute(
                "UPDATE pictures SET size = ?, modified = ? WHERE id = ?",
                (stamp.size, stamp.modified, identity),
            )

    def remove(self, ids: Iterable[int]) -> None:
        """Take pictures out."""
        pairs = [(one,) for one in ids]
        with self._lock:
            with transaction(self._database):
                self._database.executemany("DELETE FROM pictures WHERE id = ?", pairs)
                self._database.executemany("INSERT OR IGNORE INTO discarded VALUES (?)", pairs)
            self._forget_discarded()

    def restart(self, encoder: Encoder) -> None:
        """Forget all pictures and take those of another model from now on; the folders stay."""
        facts = [
            (encoder.model, "model"),
            (str(encoder.dimension), "dimension"),
            (uuid.uuid4().hex[:16], "name"),
        ]
        with self._lock:
            with transaction(self._database):
                self._store.clear()
                self._database.execute("DELETE FROM pictures")
                self._database.execute("DELETE FROM discarded")
                self._database.executemany("UPDATE facts SET value = ? WHERE name = ?", facts)
            self._store.drop()
            self._reopen()

    def vector_of_content(self, digest: str) -> Array | None:
        """Return the embedding (D,) of a picture of the same content, None where there is none."""
        found = self._all("SELECT id FROM pictures WHERE digest = ? LIMIT 1", digest)
        return self.vector(found[0][0]) if found else None

    def optimise(self, progress: Progress) -> None:
        """Do what makes searching faster, after many were added."""
        with self._lock:
            self._take_in()
            self._store.optimise(progress)

    # ----------------------------------------------------------------- the database

    def _open_store(self) -> Store:
        facts = self._facts()
        self.model, self.dimension = facts["model"], int(facts["dimension"])
        self.address, self._name = facts["store"], facts["name"]
        return open_store(self.address, self.folder, self._name, self.dimension, self._database)

    def _reopen(self) -> None:
        self._store.close()
        self._store = self._open_store()

    def _take_in(self) -> None:
        """Look whether another process has written."""
        version = self._data_version()
        if version != self._version:
            self._version = version
            if self._facts()["name"] != self._name:  # It was begun anew for another model.
                self._reopen()
            self._store.refresh()

    def _forget_discarded(self) -> None:
        with self._lock:
            ids = [one for (one,) in self._all("SELECT id FROM discarded")]
            if not ids:
                return
            with transaction(self._database):
                self._store.discard(np.array(ids))
                self._database.execute("DELETE FROM discarded")

    def _pictures(self, ids: Sequence[int]) -> dict[int, Picture]:
        rows = self._all(
            f"{_PICTURES} WHERE pictures.id IN (SELECT value FROM json_each(?))", json.dumps(ids)
        )
        return {picture.id: picture for picture in map(_picture, rows)}

    def _facts(self) -> dict[str, str]:
        facts = dict(self._all("SELECT name, value FROM facts"))
        if facts.get("format") != FORMAT:
            raise DataError(
                f"the index has format {facts.get('format')}, and this reads {FORMAT}",
                where=str(self.folder),
                remedy="update pegboard-clip, or make another index with --index",
            )
        return facts

    def _data_version(self) -> int:
        return int(self._one("PRAGMA data_version")[0])

    def _all(self, statement: str, *values: Any) -> list[Any]:
        with self._lock:
            try:
                return self._database.execute(statement, values).fetchall()
            except sqlite3.DatabaseError as error:
                raise _unreadable(self.folder / DATABASE, error) from error

    def _one(self, statement: str) -> Any:
        return self._all(statement)[0]


_PICTURES = (
    "SELECT pictures.id, roots.path, pictures.path, size, modified, digest "
    "FROM pictures JOIN roots ON roots.id = pictures.root"
)


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=SECONDS, isolation_level=None, check_same_thread=False)
    try:
        # A commit is on the disk when it returns.
        database.execute("PRAGMA synchronous = FULL")
    except sqlite3.DatabaseError as error:
        database.close()
        raise _unreadable(path, error) from error
    return database


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        f"the index cannot be read ({error})",
        where=str(path),
        remedy="make it again: remove the folder and give 'pegboard index FOLDER'",
    )


def _picture(row: Any) -> Picture:
    identity, root, path, size, modified, digest = row
    return Picture(
        id=identity,
        root=_folder(root),
        path=os.fsdecode(path),
        stamp=Stamp(size=size, modified=modified),
        digest=digest,
    )


@lru_cache(maxsize=256)
def _folder(path: bytes) -> Path:
    """Return a declared folder; making the same `Path` for each picture would take its time."""
    return Path(os.fsdecode(path))


def _match(picture: Picture, score: float) -> Match:
    return Match(id=picture.id, path=picture.path, root=picture.root, score=score)


# --------------------------------------------------------------------------- a folder comes in


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file as it comes into the index."""

    path: str
    """Below the root, with `/`."""
    stamp: Stamp
    """Of the file that was read."""
    digest: str
    """SHA-256 of what is in it."""


@dataclass(kw_only=True)
class Summary:
    """What a look through a folder changed."""

    added: int = 0
    """Pictures that are new, or that had not been reached before."""
    changed: int = 0
    """Pictures whose content is another."""
    removed: int = 0
    """Pictures that are gone."""
    same: int = 0
    """Pictures that are as they were."""
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    """Files and folders that were left out, and why."""

    def __add__(self, other: Summary) -> Summary:
        return Summary(
            added=self.added + other.added,
            changed=self.changed + other.changed,
            removed=self.removed + other.removed,
            same=self.same + other.same,
            unreadable=[*self.unreadable, *other.unreadable],
        )

    def __str__(self) -> str:
        counts = f"{self.added} added, {self.changed} changed, {self.removed} removed"
        return f"{counts}, {self.same} as before"


@dataclass(frozen=True, kw_only=True)
class _Read:
    """A file that was read."""

    path: str
    entry: Entry | None = None
    image: Array | None = None
    problem: str = ""
    is_broken: bool = False


def refresh(
    index: Index, folder: Path, encoder: Encoder, progress: Progress, *, pixels: int = PIXELS
) -> Summary:
    """Bring the index up to what is in a folder; what did not change is not read.

    A file whose size and time are as before is as before; otherwise its content's digest tells. A
    file that was moved, or is there twice, is embedded once. Files that are gone leave the index.

    Args:
        index: Where nobody else is writing; see `Index.writing`.
        folder: Is declared, or lies in a declared one, which is then looked through as a whole.
        encoder: Of the index's model.
        progress: Shows how far it is.
        pixels: Most pixels of a picture; larger ones are left out.

    Raises:
        DataError: The folder is not there, holds none of the pictures that it had, or the index
            belongs to another model.
    """
    index.require(encoder)
    if not folder.is_dir():
        look_through(folder)  # Says so, before anything is declared.
    root = index.declare(folder)
    with progress.task(f"look through {root}"):
        look = look_through(root, leave=[index.folder.resolve()])
    known = index.known(root)
    _require_pictures(root, look, known)
    summary = Summary(unreadable=list(look.unreadable))
    todo = [path for path, stamp in look.files.items() if _is_new(known.get(path), stamp)]
    summary.same = len(look.files) - len(todo)
    reads = _in_threads(lambda path: _read(root, path, known.get(path), encoder.size, pixels), todo)
    batch: list[_Read] = []
    for read in progress.track(reads, "index", len(todo)):
        if _settle(index, read, known, summary):
            batch.append(read)
        if len(batch) == BATCH:
            _add(index, root, encoder, batch, known, summary)
            batch = []
    _add(index, root, encoder, batch, known, summary)
    gone = [known[path].id for path in known if path not in look.files and not look.may_hold(path)]
    index.remove(gone)
    summary.removed += len(gone)
    summary.unreadable = [(str(root / path), reason) for path, reason in summary.unreadable]
    return summary


def _is_new(known: Picture | None, stamp: Stamp) -> bool:
    return known is None or known.stamp != stamp


def _require_pictures(root: Path, look: Look, known: dict[str, Picture]) -> None:
    """Refuse to forget a whole folder, which is more often not mounted than emptied.

    Raises:
        DataError: It has no picture, and had some.
    """
    if known and not look.files and not look.unreadable:
        raise DataError(
            f"none of its {len(known)} pictures is there any more",
            where=str(root),
            remedy=f"mount it, or take it out with 'pegboard index --forget {root}'",
        )


def _read(root: Path, path: str, known: Picture | None, size: int, pixels: int) -> _Read:
    """Read a file; decode it where its content is another than the index knows."""
    try:
        content, stamp = read_inside(root, path)
        digest = hashlib.sha256(content).hexdigest()
        entry = Entry(path=path, stamp=stamp, digest=digest)
        if known is not None and known.digest == digest:
            return _Read(path=path, entry=entry)
        image = fitted(read_image(content, pixels=pixels, where=path), size)
        return _Read(path=path, entry=entry, image=image)
    except DataError as error:
        return _Read(path=path, problem=error.what, is_broken=True)
    except OSError as error:
        return _Read(path=path, problem=error.strerror or "cannot be read")


def _settle(index: Index, read: _Read, known: dict[str, Picture], summary: Summary) -> bool:
    """Do what needs no model; return whether there is something left to embed."""
    before = known.get(read.path)
    if read.entry is None:
        summary.unreadable.append((read.path, read.problem))
        if before is not None and read.is_broken:
            # What the index knows of it is no longer there.
            index.remove([before.id])
            summary.removed += 1
        return False
    if read.image is None and before is not None:
        index.touch(before.id, read.entry.stamp)
        summary.same += 1
        return False
    return True


def _add(
    index: Index,
    root: Path,
    encoder: Encoder,
    reads: Sequence[_Read],
    known: dict[str, Picture],
    summary: Summary,
) -> None:
    """Embed a batch and commit it; a content that the index has seen is not embedded again."""
    if not reads:
        return
    entries = [read.entry for read in reads if read.entry is not None]
    vectors: dict[str, Array] = {}
    for entry in entries:
        seen = index.vector_of_content(entry.digest)
        if seen is not None:
            vectors[entry.digest] = seen
    images = {
        entry.digest: read.image
        for entry, read in zip(entries, reads, strict=True)
        if read.image is not None and entry.digest not in vectors
    }
    if images:
        embedded = encoder.images(np.stack(list(images.values())))
        vectors |= dict(zip(images, embedded, strict=True))
    index.add(root, entries, np.stack([vectors[entry.digest] for entry in entries]))
    changed = sum(entry.path in known for entry in entries)
    summary.changed += changed
    summary.added += len(entries) - changed


def _in_threads(call: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield results in order; a few items are worked on ahead while the caller does the rest."""
    workers = min(8, os.cpu_count() or 1)
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="read") as pool:
        for item in items:
            waiting.append(pool.submit(call, item))
            if len(waiting) > BATCH + workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
