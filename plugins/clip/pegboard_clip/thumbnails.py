"""Small pictures for the page: of files in the index, made anew without anything but pixels."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

from PIL import Image

from pegboard.errors import DataError, RequestError
from pegboard.files import atomic_write, remove
from pegboard_clip.folders import open_inside, read_inside, stamp_of
from pegboard_clip.images import read_image
from pegboard_clip.index import Index, Picture

SIDE = 384
"""Longest side in pixels."""
QUALITY = 82
FOLDER = "thumbnails"


class Thumbnails:
    """Makes thumbnails and keeps them.

    They are asked for by the picture's number, and a file is opened in its declared folder and
    through no link (`folders.open_inside`), also when a thumbnail of it is kept already: what was
    taken away or replaced is shown no more.

    Args:
        folder: Where they are kept.
        pixels: Most pixels of a picture.
    """

    def __init__(self, folder: Path, *, pixels: int) -> None:
        self.folder, self.pixels = folder, pixels

    def jpeg(self, index: Index, identity: int) -> bytes:
        """Return the thumbnail of a picture as JPEG.

        Raises:
            RequestError: There is no such picture in the index, or its file can no longer be shown.
        """
        picture = index.picture(identity)
        if picture is None:
            raise RequestError(
                "there is no picture of this number", where="id", remedy="search again"
            )
        try:
            return self._of(picture)
        except (OSError, DataError):
            raise RequestError(
                "the picture can no longer be shown",
                where="id",
                remedy="bring the index up to date with 'pegboard index'",
            ) from None

    def sweep(self, index: Index) -> None:
        """Remove thumbnails of pictures that are no longer in the index."""
        known = {self._kept(digest).name for digest in index.digests()}
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if path.name not in known:
                    remove(path)

    def _of(self, picture: Picture) -> bytes:
        kept = self._kept(picture.digest)
        with open_inside(picture.root, picture.path) as stream:
            is_as_before = stamp_of(os.fstat(stream.fileno())) == picture.stamp
        if is_as_before and kept.is_file():
            return kept.read_bytes()
        content, _ = read_inside(picture.root, picture.path)
        made = thumbnail(read_image(content, pixels=self.pixels, where="thumbnail"))
        # Of a file that has changed since, the index does not speak yet.
        if hashlib.sha256(content).hexdigest() == picture.digest:
            atomic_write(kept, made)
        return made

    def _kept(self, digest: str) -> Path:
        # Without a suffix: a folder that is indexed may hold the project.
        return self.folder / f"{digest}-{SIDE}"


def thumbnail(image: Image.Image) -> bytes:
    """Return a picture of mode RGB as a small JPEG: pixels alone, no EXIF, no colour profile."""
    small = image.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    bare = Image.new("RGB", small.size)
    bare.paste(small)
    stream = io.BytesIO()
    bare.save(stream, "JPEG", quality=QUALITY, optimize=True)
    return stream.getvalue()
