"""The yardstick: an ASGI function on uvicorn that does nothing but answer V2 JSON with the model.

usage: bare.py MODEL PORT
"""

from __future__ import annotations

import sys

import numpy as np
import orjson
import uvicorn
from model import Model

model = Model(sys.argv[1])


async def application(scope, receive, send):
    """Answer any request as an inference request."""
    if scope["type"] != "http":
        return
    message = await receive()
    body = message["body"]
    while message.get("more_body"):
        message = await receive()
        body += message["body"]
    tensor = orjson.loads(body)["inputs"][0]
    outputs = model(np.array(tensor["data"], np.float32).reshape(tensor["shape"]))
    answer = orjson.dumps(
        {
            "model_name": "fraud",
            "outputs": [
                {"name": name, "datatype": "FP32", "shape": array.shape, "data": array.ravel()}
                for name, array in outputs.items()
            ],
        },
        option=orjson.OPT_SERIALIZE_NUMPY,
    )
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(answer)),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


uvicorn.run(
    application,
    host="127.0.0.1",
    port=int(sys.argv[2]),
    loop="uvloop",
    http="httptools",
    lifespan="off",
    access_log=False,
    log_level="warning",
)
