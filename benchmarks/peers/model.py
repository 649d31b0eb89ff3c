"""What every server of the comparison runs: one ONNX Runtime session on one thread."""

from __future__ import annotations

import numpy as np
import onnxruntime


class Model:
    """The model file, opened as Pegboard opens it."""

    def __init__(self, path: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
        self.outputs = [output.name for output in self.session.get_outputs()]

    def __call__(self, features: np.ndarray) -> dict[str, np.ndarray]:
        """Return the outputs by name."""
        return dict(zip(self.outputs, self.session.run(None, {"features": features}), strict=True))
