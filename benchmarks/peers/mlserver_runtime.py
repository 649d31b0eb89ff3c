"""MLServer's custom runtime that calls ONNX Runtime; `mlserver start` finds it by its name."""

from __future__ import annotations

import os

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse
from model import Model


class Fraud(MLModel):
    """The model as MLServer loads it."""

    async def load(self) -> bool:
        """Open the model."""
        self.model = Model(os.environ["PEER_MODEL"])
        return True

    async def predict(self, payload):
        """Answer one request."""
        outputs = self.model(NumpyCodec.decode_input(payload.inputs[0]))
        return InferenceResponse(
            model_name=self.name,
            outputs=[NumpyCodec.encode_output(name, array) for name, array in outputs.items()],
        )
