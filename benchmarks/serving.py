"""Measures the service of deploy/serve.py: requests per second and how long they take, by the number of clients.

The model is that of configs/best.yaml in size, with random weights: Unet with RegNetY-004 at 256 px. The requests are
PNG files of 2000 x 2000 px; service, HTTP proxy and clients share the cores of this machine. Each client sends its next
request when it has its answer. The same files are predicted in a bare loop of the predictor, with one thread and with
one on each core.

Run it from the folder of the repository, with the extra `serve` installed: python -m benchmarks.serving
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from ray import serve
from rich.console import Console
from rich.table import Table

from benchmarks.results import write_result
from benchmarks.sharding import write_corpus
from deploy import serve as service
from lungseg_ray import models
from lungseg_ray.cluster.planning import cores
from lungseg_ray.cluster.session import cluster
from lungseg_ray.corpus.read import decode_alone
from lungseg_ray.imaging import png
from lungseg_ray.inference.predictor import load_predictor
from lungseg_ray.run.exported import Sidecar, save_model
from lungseg_ray.run.folder import BEST
from lungseg_ray.storage import Location, locate

SIZE, LONGER_SIDE, FILES, CLIENTS = 256, 1024, 8, (1, 4, 16)
ADDRESS = "http://127.0.0.1:8000/masks"


def save_network(run: Location) -> None:
    """Writes a finished run with random weights."""
    decoder = (128, 64, 32, 16, 16)
    model = models.build(
        architecture="Unet", encoder="timm-regnety_004", in_channels=1, classes=1, decoder_channels=decoder
    )
    side = {"size": SIZE, "channels": 1, "longer_side": LONGER_SIDE, "classes": 1, "class_names": ["lung"]}
    save_model(run / BEST, model, Sidecar.model_validate({**side, "threshold": 0.5}), "# Random weights\n")


def bare_speed(run: Location, files: Sequence[bytes], requests: int, threads: int) -> float:
    """Returns the images per second of a loop that decodes, predicts and encodes one file after another."""
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    predictor = load_predictor(run / BEST)
    start = time.perf_counter()
    for number in range(requests + 1):
        if number == 1:
            start = time.perf_counter()
        file = files[number % len(files)]
        image = decode_alone(file, "image", channels=1, longer_side=LONGER_SIDE, white=None)
        maps = predictor.maps(predictor.inputs([image.pixels]))
        (probability,) = predictor.combine(maps, [(image.height, image.width)])
        png(predictor.labels(probability) * 255)
    return requests / (time.perf_counter() - start)


def served(files: Sequence[bytes], requests: int, clients: int) -> dict[str, float]:
    """Returns the requests per second, and the seconds that they took: median, 95th and 99th percentile."""

    def send(number: int) -> float:
        start = time.perf_counter()
        with urllib.request.urlopen(urllib.request.Request(ADDRESS, data=files[number % len(files)])) as answer:
            answer.read()
        return time.perf_counter() - start

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(send, range(clients)))
        start = time.perf_counter()
        took = list(pool.map(send, range(requests)))
        rate = requests / (time.perf_counter() - start)
    median, late, latest = np.percentile(took, [50, 95, 99]).tolist()
    return {"requests_per_s": rate, "median_s": median, "p95_s": late, "p99_s": latest}


def main() -> None:
    """Measures, prints a table and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=120, help="requests of each round")
    parser.add_argument("--repeats", type=int, default=3, help="rounds, of which the median counts")
    given = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="lungseg-serving-") as name:
        folder = Path(name)
        run = locate(str(folder / "run"))
        save_network(run)
        write_corpus(folder / "drawn", FILES)
        files = [file.read_bytes() for file in sorted((folder / "drawn/images").iterdir())]
        bare = {
            str(threads): statistics.median(
                bare_speed(run, files, given.requests // 4, threads) for _ in range(given.repeats)
            )
            for threads in sorted({1, cores()})
        }
        os.environ[service.MODEL] = run.uri
        rounds: dict[int, list[dict[str, float]]] = {clients: [] for clients in CLIENTS}
        with cluster(processes=1):
            serve.run(service.app, name="masks")
            for _ in range(given.repeats):
                for number, each in rounds.items():
                    each.append(served(files, given.requests, number))
            serve.shutdown()
    clients: dict[str, dict[str, Any]] = {
        str(number): {key: statistics.median(one[key] for one in found) for key in found[0]}
        for number, found in rounds.items()
    }
    table = Table("clients", "requests/s", "median, s", "95 %", "99 %")
    for name, one in clients.items():
        table.add_row(name, *(f"{value:.2f}" for value in one.values()))
    console.print(table)
    console.print(f"Bare loop, images/s by threads: {bare}")
    write_result("serving", {"size": SIZE, "bare_images_per_s": bare, "clients": clients}, console)


if __name__ == "__main__":
    main()
