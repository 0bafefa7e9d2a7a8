"""Models as files that other programs open: ONNX, PyTorch's exported programs, and TorchScript.

Each file contains a `WholeNetwork`: its input is pixels, (N, size, size, C) uint8 with any N, and its output is
probabilities, (N, size, size, K) float32. What happens to an image before and after that is `reference.py`.
"""

from __future__ import annotations

import importlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lungseg_ray.errors import UserError
from lungseg_ray.imaging import Pixels
from lungseg_ray.inference.predictor import Probability
from lungseg_ray.inference.whole import WholeNetwork
from lungseg_ray.names import Format
from lungseg_ray.run.exported import Sidecar

FILES: dict[Format, str] = {"onnx": "model.onnx", "torch-export": "model.pt2", "torchscript": "model.pt"}
"""The name of the file of each format."""
OPSET = 20
"""The version of ONNX's operators in which networks are written."""
_INPUT, _OUTPUT = "images", "probabilities"
_EXAMPLES = 2
"""The images that a network is traced with. One would be taken for a constant of the network."""

Opened = Callable[[Pixels], Probability]
"""A model that was opened from a file: it computes probabilities of pixels."""


def needs(format: Format) -> None:
    """Checks that the packages are there that a format needs.

    Args:
        format: The format.

    Raises:
        UserError: If one is not.
    """
    for package in ("onnx", "onnxscript", "onnxruntime") if format == "onnx" else ():
        try:
            importlib.import_module(package)
        except ImportError:
            raise UserError(
                f"--format onnx: the package {package} is not installed. pip install -c constraints.txt -e '.[export]'."
            ) from None


@torch.no_grad()
def write_model(network: WholeNetwork, sidecar: Sidecar, format: Format, file: Path) -> None:
    """Writes a network.

    Args:
        network: The network, in evaluation mode on the CPU.
        sidecar: The size and the channels of its images.
        format: The format.
        file: The file.
    """
    shape = (_EXAMPLES, sidecar.size, sidecar.size, sidecar.channels)
    examples = (torch.zeros(shape, dtype=torch.uint8),)
    any_number = ({0: torch.export.Dim("batch")},)
    with _quiet():
        if format == "torchscript":
            torch.jit.trace(network, examples, check_trace=False).save(str(file))
        elif format == "torch-export":
            torch.export.save(torch.export.export(network, examples, dynamic_shapes=any_number), file)
        else:
            program: Any = torch.onnx.export(
                network,
                examples,
                dynamo=True,
                input_names=[_INPUT],
                output_names=[_OUTPUT],
                dynamic_shapes=any_number,
                opset_version=OPSET,
                verbose=False,
            )
            program.save(str(file))


def open_file(file: Path, format: Format, *, threads: int = 0) -> Opened:
    """Opens a file that `write_model` wrote, with nothing of this project.

    Args:
        file: The file.
        format: Its format.
        threads: The threads of ONNX Runtime; 0 for one on each core.
    """
    if format == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return lambda images: session.run(None, {_INPUT: images})[0]
    with _quiet():
        module: Any = torch.jit.load(str(file)) if format == "torchscript" else torch.export.load(file).module()

    @torch.no_grad()
    def computed(images: Pixels) -> Probability:
        found: Probability = module(torch.from_numpy(images)).numpy()
        return found

    return computed


def write_eight_bits(file: Path, out: Path, batches: Iterable[Pixels]) -> None:
    """Writes an ONNX file that computes convolutions with 8-bit integers.

    Args:
        file: A file that `write_model` wrote.
        out: The new file.
        batches: Images, (N, size, size, C) uint8 each, like those that the model is for; the ranges of the integers are
            chosen by what the network computes of them.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter(batches)

        def get_next(self) -> dict[str, Pixels] | None:
            images = next(self._left, None)
            return None if images is None else {_INPUT: images}

    with tempfile.TemporaryDirectory(prefix="lungseg-") as folder, _quiet():
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(file), str(prepared), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(prepared),
            str(out),
            Reader(),
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )


def largest_difference(opened: Opened, network: WholeNetwork, sidecar: Sidecar) -> float:
    """Compares an opened model with the network that was written, on one image and on more than it was traced with.

    Args:
        opened: The model.
        network: The network.
        sidecar: The size and the channels of its images.

    Returns:
        The largest difference of two probabilities, 0 to 1.
    """
    shape = (_EXAMPLES + 1, sidecar.size, sidecar.size, sidecar.channels)
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    # A ramp, too, since noise alone may look alike everywhere to a network.
    noise[0] = np.linspace(0, 255, sidecar.size, dtype=np.uint8)[:, None, None]
    with torch.no_grad():
        expected = network(torch.from_numpy(noise)).numpy()
    differences = [opened(some) - of_them for some, of_them in ((noise, expected), (noise[:1], expected[:1]))]
    return max(float(np.abs(one).max()) for one in differences)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what the exporters say of their progress and of their own code from the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
