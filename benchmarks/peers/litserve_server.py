"""LitServe with a model that calls ONNX Runtime; its own plain JSON, the request that of V2.

usage: litserve_server.py MODEL PORT FAST_QUEUE BATCH
"""

from __future__ import annotations

import sys

import litserve
import numpy as np
from model import Model

PATH, PORT, FAST_QUEUE, BATCH = sys.argv[1], *map(int, sys.argv[2:5])


class Fraud(litserve.LitAPI):
    """The model as LitServe calls it, one request or a batch at a time."""

    def setup(self, device) -> None:
        """Open the model."""
        self.model = Model(PATH)

    def decode_request(self, request):
        """Return the row of a request."""
        tensor = request["inputs"][0]
        return np.array(tensor["data"], np.float32).reshape(tensor["shape"])

    def predict(self, rows):
        """Return the outputs by name."""
        return self.model(rows)

    def encode_response(self, output):
        """Return the answer as JSON takes it."""
        return {
            "outputs": [
                {"name": name, "datatype": "FP32", "shape": array.shape, "data": array.tolist()}
                for name, array in output.items()
            ]
        }


class FraudInBatches(Fraud):
    """The same, with LitServe's dynamic batches."""

    def batch(self, inputs):
        """Put rows together."""
        return np.concatenate(inputs)

    def unbatch(self, output):
        """Take answers apart."""
        rows = range(len(next(iter(output.values()))))
        return [{name: array[row : row + 1] for name, array in output.items()} for row in rows]


if __name__ == "__main__":
    api = FraudInBatches(max_batch_size=BATCH, batch_timeout=0.001) if BATCH > 1 else Fraud()
    server = litserve.LitServer(
        api, accelerator="cpu", devices=1, workers_per_device=1, fast_queue=bool(FAST_QUEUE)
    )
    server.run(
        host="127.0.0.1",
        port=PORT,
        num_api_servers=1,
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )
