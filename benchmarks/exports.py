"""Compares exported files with the predictor, for all architectures, and writes docs/exports.md.

Weights are random, and with them masks: they are compared by the tests, for a small network. Speed is that
of all cores of this machine, the median of three.

Run it from the folder of the repository, with the extra `export` installed: python -m benchmarks.exports
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from benchmarks.page import table
from benchmarks.results import machine, write_result
from lungseg_ray.cluster.planning import cores
from lungseg_ray.corpus.phantom import draw
from lungseg_ray.imaging import Pixels
from lungseg_ray.inference.portable import FILES, open_file, write_eight_bits, write_model
from lungseg_ray.inference.predictor import Predictor
from lungseg_ray.models import build
from lungseg_ray.names import ARCHITECTURES
from lungseg_ray.run.exported import Sidecar

PAGE = Path(__file__).resolve().parent.parent / "docs" / "exports.md"
SIZE, IMAGES, ROUNDS = 192, 8, 3
LARGEST = 1e-4
"""The difference of two logits up to which they count as equal."""
ENCODERS = {"U2Net": "rsu_small"}
"""Encoders by architecture; RegNetY-004 for the others."""
EIGHT_BITS = "8-bit ONNX"

TEXT = """\
# Models for other programs

```sh
pip install -c constraints.txt -e '.[export]'
python jobs/export.py --run runs/mine --out exported                        # exported/model.onnx
python jobs/export.py --run runs/mine --out exported --format torch-export  # exported/model.pt2
python jobs/export.py --run runs/mine --out exported --format torchscript   # exported/model.pt
```

A file takes pixels, (N, size, size, channels) uint8 with any N, and gives probabilities, (N, size, size, K) float32.
The scaling of pixels and the mean over mirror images are part of it. What happens before and after that - an image is
reduced to `longer_side` and resized to `size`, a map is resized to the image, the threshold decides, components are
cleaned up - is `reference.py` beside the file: a page of code for NumPy and OpenCV, with `preprocessing.json`.
The tests compare what it computes with the predictor, pixel by pixel.

The job opens each file again, compares its probabilities with those of the model, prints the largest difference, and
writes nothing where it exceeds 0.0001. ONNX files use version {opset} of the operators.

`--int8` also writes `model-int8.onnx`, which computes convolutions with 8-bit integers. Their ranges are chosen on
training images, and the job prints the mean Dice of the validation images with and without it.

## Every architecture

Written by `python -m benchmarks.exports`; {machine}, PyTorch {torch},
ONNX Runtime {onnxruntime}. Encoder RegNetY-004,
for U2Net `rsu_small`; random weights; {size} x {size} px, {images} images at once. The difference is the largest one
from the logits of `Predictor`, over the three formats, where probabilities are between 0.001 and 0.999. A pixel whose
probability is within it of the threshold may fall to the other side: with the trained model of `configs/best.yaml`, one
of the 6.3 million pixels of 32 validation masks did in ONNX, and 0.17 % with 8 bits, which left the mean Dice at 0.948.

{table}
"""


def images_per_second(work: Callable[[], object]) -> float:
    """Returns the speed of some work on all images, the median of `ROUNDS` after one that is not counted."""
    seconds = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return IMAGES / statistics.median(seconds[1:])


def logits(probability: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Returns the logits of probabilities, of which those below 0.001 and above 0.999 are cut off."""
    p = np.clip(probability.astype(np.float64), 1e-3, 1 - 1e-3)
    return np.log(p / (1 - p))


def measure(architecture: str, images: Pixels, folder: Path) -> dict[str, Any]:
    """Writes an architecture in all formats, and compares the files with the predictor."""
    torch.manual_seed(0)
    network = build(
        architecture=architecture, encoder=ENCODERS.get(architecture, "timm-regnety_004"), in_channels=1, classes=1
    )
    side = {"size": SIZE, "channels": 1, "longer_side": 1024, "classes": 1, "class_names": ["lung"], "threshold": 0.5}
    sidecar = Sidecar.model_validate({**side, "normalise": True})
    predictor = Predictor([(network, sidecar)])
    (expected,) = predictor.maps([images], batch=IMAGES)
    found: dict[str, Any] = {"difference": 0.0, "images_per_s": {}}
    found["images_per_s"]["PyTorch"] = images_per_second(lambda: predictor.maps([images], batch=IMAGES))
    for format, name in FILES.items():
        file = folder / name
        write_model(predictor.networks[0], sidecar, format, file)
        opened = open_file(file, format)
        maps = opened(images)
        found["difference"] = max(found["difference"], float(np.abs(logits(maps) - logits(expected)).max()))
        found["images_per_s"][format] = images_per_second(lambda opened=opened: opened(images))  # type: ignore[misc]
    small = folder / "small.onnx"
    write_eight_bits(folder / FILES["onnx"], small, (images[number : number + 4] for number in range(0, IMAGES, 4)))
    eight = open_file(small, "onnx")
    found["images_per_s"][EIGHT_BITS] = images_per_second(lambda: eight(images))
    return found


def page(figures: dict[str, Any]) -> str:
    """Returns the page."""
    speeds = ("PyTorch", "onnx", EIGHT_BITS)
    rows = [
        (
            name,
            f"{one['difference']:.0e}",
            *(f"{one['images_per_s'][kind]:.1f}" for kind in speeds),
        )
        for name, one in figures["architectures"].items()
    ]
    head = ("architecture", "difference", "PyTorch, images/s", "ONNX Runtime", "the same, 8 bits")
    return TEXT.format(**{**figures, "table": table(head, rows)})


def main() -> None:
    """Measures, writes the page and the result, and fails where logits differ."""
    import onnxruntime

    from lungseg_ray.inference.portable import OPSET

    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    console = Console()
    torch.set_num_threads(cores())
    drawn: Iterable[Pixels] = (draw(number, seed=0, size=SIZE)[0] for number in range(IMAGES))
    images = np.stack([image.reshape(SIZE, SIZE, 1) for image in drawn])
    found = {}
    with tempfile.TemporaryDirectory(prefix="lungseg-exports-") as folder:
        for architecture in track(ARCHITECTURES, "Comparing", console=console):
            found[architecture] = measure(architecture, images, Path(folder))
    versions = {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__, "opset": OPSET}
    figures = {**versions, "size": SIZE, "images": IMAGES, "architectures": found}
    write_result("exports", figures, console)
    PAGE.write_text(page({**figures, "machine": machine()}))
    console.print(f"Written: {PAGE}")
    if wrong := [name for name, one in found.items() if one["difference"] > LARGEST]:
        raise SystemExit(f"Logits differ by more than {LARGEST}: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
