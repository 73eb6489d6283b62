"""Reads an entry of a Triton model repository with Triton's own schema, runs its ONNX file
on an input of the shape that the configuration describes, and prints both as JSON.

    python triton_config.py ENTRY BATCH HEIGHT WIDTH
"""
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from google.protobuf import text_format
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import np_to_triton_dtype, triton_to_np_dtype

entry, batch, height, width = Path(sys.argv[1]), *map(int, sys.argv[2:])
config = text_format.Parse((entry / "config.pbtxt").read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


def datatype(tensor):
    """The Open Inference Protocol's name of a tensor's type."""
    return model_config_pb2.DataType.Name(tensor.data_type).removeprefix("TYPE_")


def of_the_file(tensor):
    """A tensor's shape in the file, as Triton works it out from the configuration."""
    shape = tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims
    return ([-1] if config.max_batch_size else []) + list(shape)


def described(tensor):
    return {"name": tensor.name, "datatype": datatype(tensor), "dims": list(tensor.dims), "of_the_file": of_the_file(tensor)}


def declared(tensor):
    numpy_type = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(bool)": np.bool_}[tensor.type]
    shape = [d if isinstance(d, int) else -1 for d in tensor.shape]
    return {"name": tensor.name, "datatype": np_to_triton_dtype(np.dtype(numpy_type)), "of_the_file": shape}


session = onnxruntime.InferenceSession(str(entry / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
inputs, sizes = {}, iter([height, width])
for tensor in config.input:
    shape = ([batch] if config.max_batch_size else []) + [next(sizes) if d == -1 else d for d in tensor.dims]
    inputs[tensor.name] = np.full(shape, 1, triton_to_np_dtype(datatype(tensor)))
results = session.run([tensor.name for tensor in config.output], inputs)
print(json.dumps({
    "config": MessageToDict(config, preserving_proto_field_name=True),
    "described": {"inputs": [described(t) for t in config.input], "outputs": [described(t) for t in config.output]},
    "declared": {"inputs": [declared(t) for t in session.get_inputs()], "outputs": [declared(t) for t in session.get_outputs()]},
    "results": [{"datatype": np_to_triton_dtype(r.dtype), "shape": list(r.shape)} for r in results],
}))
