"""What a server needs, and what it must not need."""

from __future__ import annotations

import subprocess
import sys

ANSWERING = """
import sys
from {{ cookiecutter.__package }} import hooks

hooks.settings_type()
hooks.decode_request(payload=hooks.signature().request)
print(*sys.modules.keys() & {"torch", "onnx", "matplotlib"})
"""


def test_answering_imports_no_training_library() -> None:
    ended = subprocess.run([sys.executable, "-c", ANSWERING], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == []
