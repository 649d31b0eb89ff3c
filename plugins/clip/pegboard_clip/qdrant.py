"""Vectors in Qdrant: one index for several machines."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from pegboard.errors import PegboardError

if TYPE_CHECKING:
    from pegboard.progress import Progress
    from pegboard.records import Array

KEY = "QDRANT_API_KEY"
"""The environment variable with the key, where the server asks for one."""
SECONDS = 10
"""Time that the server has to answer."""
EFFORT = 128
"""Candidates that a search looks at (hnsw_ef), or twice as many as are asked for."""


class QdrantStore:
    """A collection of vectors, searched by their inner product.

    Args:
        url: `http://host:6333`.
        name: What tells the collection from those of other indexes.
        dimension: Numbers of a vector.
        connect: Makes the client; that of the URL when left out.

    Raises:
        MissingExtraError: qdrant-client is not installed.
        PegboardError: The server does not answer.
    """

    def __init__(
        self, url: str, name: str, dimension: int, connect: Callable[[], Any] | None = None
    ) -> None:
        from pegboard.targets.support import require

        require("qdrant_client", what="keeping vectors in Qdrant")
        from qdrant_client import QdrantClient, models

        self.url, self.dimension, self._name = url, dimension, f"pegboard_{name}"
        self._models: Any = models
        with self._asking():
            self._client: Any = (
                connect()
                if connect
                # A check of versions would ask from a thread of its own, which nobody waits for.
                else QdrantClient(
                    url=url,
                    api_key=os.environ.get(KEY),
                    timeout=SECONDS,
                    check_compatibility=False,
                )
            )
            self._make()

    def write(self, ids: Array, vectors: Array) -> None:
        """Insert or replace them."""
        points = self._models.Batch(
            ids=[int(one) for one in ids], vectors=np.asarray(vectors, np.float32).tolist()
        )
        with self._asking():
            self._client.upsert(self._name, points=points, wait=True)

    def discard(self, ids: Array) -> None:
        """Delete them."""
        chosen = self._models.PointIdsList(points=[int(one) for one in ids])
        with self._asking():
            self._client.delete(self._name, points_selector=chosen, wait=True)

    def clear(self) -> None:
        """Nothing is on this disk."""

    def drop(self) -> None:
        """Delete the collection."""
        with self._asking():
            self._client.delete_collection(self._name)

    def search(self, vector: Array, top: int) -> tuple[Array, Array]:
        """Ask for the nearest."""
        effort = self._models.SearchParams(hnsw_ef=max(EFFORT, 2 * top))
        with self._asking():
            answer = self._client.query_points(
                self._name,
                query=np.asarray(vector, np.float32).tolist(),
                limit=top,
                search_params=effort,
                with_payload=False,
            )
        ids = np.array([point.id for point in answer.points], dtype=np.int64)
        return ids, np.array([point.score for point in answer.points], dtype=np.float32)

    def read(self, ids: Array) -> Array:
        """Retrieve them."""
        wanted = [int(one) for one in ids]
        with self._asking():
            points = self._client.retrieve(
                self._name, wanted, with_payload=False, with_vectors=True
            )
        found = {point.id: point.vector for point in points}
        return np.array([found[one] for one in wanted], dtype=np.float32)

    def optimise(self, progress: Progress) -> None:
        """Qdrant does so itself."""

    def refresh(self) -> None:
        """Nothing is kept here."""

    def close(self) -> None:
        """Close the client."""
        self._client.close()

    def _make(self) -> None:
        if not self._client.collection_exists(self._name):
            kind = self._models.VectorParams(
                size=self.dimension, distance=self._models.Distance.DOT
            )
            self._client.create_collection(self._name, vectors_config=kind)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Say in one sentence what went wrong."""
        from qdrant_client.http.exceptions import ApiException

        try:
            yield
        except (ApiException, OSError) as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise PegboardError(
                f"Qdrant does not keep the vectors: {said}",
                where=self.url,
                remedy=f"start it, or set {KEY} where it asks for a key",
            ) from error
