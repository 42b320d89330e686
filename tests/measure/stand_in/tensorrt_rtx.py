"""What TensorRT's runtime does with an engine, for machines without a GPU: inputs are (N, 4) float32, outputs x + 1.

`tests/measure/test_engines.py` compares its names with those of the real module.
"""

import ctypes
from enum import Enum

import numpy as np

TensorIOMode = Enum("TensorIOMode", ["INPUT", "OUTPUT"])
TensorLocation = Enum("TensorLocation", ["DEVICE", "HOST"])
DataType = Enum("DataType", ["FLOAT"])
EngineStat = Enum("EngineStat", ["TOTAL_WEIGHTS_SIZE"])


def nptype(dtype):
    return {DataType.FLOAT: np.float32}[dtype]


def init_libnvinfer_plugins(logger, namespace):
    return True


class ILogger:
    ERROR, INTERNAL_ERROR = "error", "internal error"


class IExecutionContext:
    def __init__(self):
        self._shapes, self._addresses = {}, {}

    def set_input_shape(self, name, shape):
        self._shapes[name] = shape
        return True

    def get_max_output_size(self, name):
        return int(np.prod(self._shapes["x"])) * 4

    def set_tensor_address(self, name, address):
        self._addresses[name] = address
        return True

    def get_tensor_shape(self, name):
        return self._shapes["x"]

    def get_tensor_address(self, name):
        return self._addresses[name]

    def execute_async_v3(self, stream_handle):
        count = int(np.prod(self._shapes["x"]))
        x, y = (np.ctypeslib.as_array((ctypes.c_float * count).from_address(self._addresses[name])) for name in "xy")
        y[:] = x + 1
        return True


class ICudaEngine:
    num_io_tensors = 2

    def create_execution_context(self):
        return IExecutionContext()

    def get_tensor_name(self, index):
        return "xy"[index]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name == "x" else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return DataType.FLOAT

    def get_tensor_shape(self, name):
        return (-1, 4)

    def get_tensor_profile_shape(self, name, profile_index):
        return [(2, 4), (3, 4), (6, 4)]

    def get_tensor_location(self, name):
        return TensorLocation.DEVICE

    def get_engine_stat(self, stat):
        return 123


class Runtime:
    def __init__(self, logger):
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine):
        if b"broken" in serialized_engine:
            self._logger.log(
                ILogger.ERROR, "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Bad. In f at /a.cpp:9)"
            )
            return None
        return ICudaEngine()
