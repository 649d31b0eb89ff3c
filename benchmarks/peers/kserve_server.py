"""KServe's server with a custom model that calls ONNX Runtime; the V2 protocol.

usage: kserve_server.py MODEL PORT
"""

from __future__ import annotations

import logging
import sys

PATH, PORT = sys.argv[1], int(sys.argv[2])
# KServe reads the command line when it is imported.
sys.argv = sys.argv[:1]

import kserve  # noqa: E402
from kserve.utils.utils import generate_uuid  # noqa: E402
from model import Model  # noqa: E402


class Fraud(kserve.Model):
    """The model under KServe's name for it."""

    def __init__(self) -> None:
        super().__init__("fraud")
        self.model = Model(PATH)
        self.ready = True

    def predict(self, payload, headers=None, response_headers=None):
        """Answer one request, on the server's own thread."""
        outputs = []
        for name, array in self.model(payload.inputs[0].as_numpy()).items():
            output = kserve.InferOutput(name=name, shape=list(array.shape), datatype="FP32")
            output.set_data_from_numpy(array, binary_data=False)
            outputs.append(output)
        return kserve.InferResponse(
            response_id=payload.id or generate_uuid(), model_name="fraud", infer_outputs=outputs
        )


if __name__ == "__main__":
    server = kserve.ModelServer(
        http_port=PORT, workers=1, enable_grpc=False, enable_latency_logging=False
    )
    for name in ("kserve", "kserve.trace", "uvicorn", "uvicorn.access"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("uvicorn.access").disabled = True
    server.start([Fraud()])
