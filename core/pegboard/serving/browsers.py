"""What a browser says of a request: a server that trusts this machine must not trust every site.

Whatever page a browser shows can make it send requests to 127.0.0.1, and one whose name is made to
point there (DNS rebinding) can read the answers, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Addresses that only this machine reaches."""

_LOCAL = re.compile(rb"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)

Headers = Iterable[tuple[bytes, bytes]]


def asks_for_this_machine(headers: Headers) -> bool:
    """Whether a request asks for this machine by its own name.

    A site that made its name point here is told by that name, which the browser says.
    """
    return all(_LOCAL.fullmatch(value) for name, value in headers if name == b"host")


def comes_from_another_site(headers: Headers) -> bool:
    """Whether a browser sends it for the page of another site, or by a link there."""
    own = (b"same-origin", b"none")
    return any(value not in own for name, value in headers if name == b"sec-fetch-site")
