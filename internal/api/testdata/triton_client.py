"""Sends inference requests with Triton's client and checks the answers.

Arguments: address, model, file of float32 images of 32×32 pixels, and the expected
anomaly score of each image.
"""

import sys

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

address, model, file, *expected = sys.argv[1:]
expected = np.array(expected, np.float32)
images = np.fromfile(file, np.float32).reshape(-1, 3, 32, 32)

client = triton.InferenceServerClient(address)
assert client.is_server_live() and client.is_server_ready()
assert client.is_model_ready(model) and client.is_model_ready(model, "1")
assert not client.is_model_ready("other")
assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
metadata = client.get_model_metadata(model)
assert [i["name"] for i in metadata["inputs"]] == ["image"] and metadata["inputs"][0]["shape"] == [-1, 3, 32, 32], metadata
assert [o["name"] for o in metadata["outputs"]] == ["reconstruction", "reconstruction_error", "mse"], metadata

requests = 0
first = None
for binary_in in (True, False):
    for outputs in (None, True, False, "error"):
        image = triton.InferInput("image", images.shape, "FP32")
        image.set_data_from_numpy(images, binary_data=binary_in)
        wanted = None
        if outputs == "error":
            wanted = [triton.InferRequestedOutput("reconstruction_error", binary_data=True)]
        elif outputs is not None:
            wanted = [triton.InferRequestedOutput(n, binary_data=outputs) for n in ("reconstruction", "reconstruction_error", "mse")]
        result = client.infer(model, [image], outputs=wanted, request_id="a-1", model_version="1" if outputs else "")
        assert result.get_response()["id"] == "a-1"
        errors = result.as_numpy("reconstruction_error")
        assert errors.dtype == np.float32 and np.array_equal(errors, expected), (errors, expected)
        reconstruction = result.as_numpy("reconstruction")
        if outputs == "error":
            assert reconstruction is None
        else:
            first = reconstruction if first is None else first
            assert reconstruction.shape == images.shape and np.array_equal(reconstruction, first)
            plain = result.as_numpy("mse")
        requests += 1
assert np.allclose(((first - images) ** 2).mean(axis=(1, 2, 3)), plain, rtol=1e-5)

# Concurrent requests.
pending = [client.async_infer(model, [image]) for _ in range(8)]
for p in pending:
    assert np.array_equal(p.get_result().as_numpy("reconstruction_error"), expected)

invalid = triton.InferInput("image", [1, 3, 16, 16], "FP32")
invalid.set_data_from_numpy(np.zeros((1, 3, 16, 16), np.float32))
for send, status in ((lambda: client.infer(model, [invalid]), "400"), (lambda: client.infer("other", [image]), "404")):
    try:
        send()
        raise AssertionError("no error")
    except InferenceServerException as e:
        assert e.status() == status and e.message(), (e.status(), e.message())
client.close()
print(requests, "requests agree")
