"""The service that answers images with masks, over HTTP."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from ray import serve

import deploy.serve as service
from lungseg_ray.corpus.phantom import draw
from lungseg_ray.inference.predictor import Predictor, load_predictor
from lungseg_ray.run.folder import BEST
from lungseg_ray.storage import locate
from tests.corpus.dicoms import IDENTITY, chest
from tests.inference.helpers import save_small_model

Answer = tuple[int, bytes, dict[str, str]]


@pytest.fixture(scope="module")
def served(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Predictor]]:
    """The address of the service, and the model that it serves."""
    run = tmp_path_factory.mktemp("run")
    save_small_model(locate(str(run)) / BEST, longer_side=64)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(service.MODEL, str(run))
        serve.start(http_options=serve.HTTPOptions(host="127.0.0.1", port=port))
        serve.run(service.app, name="masks")
    yield f"http://127.0.0.1:{port}/masks", load_predictor(locate(str(run)) / BEST)
    serve.shutdown()


def post(address: str, data: bytes) -> Answer:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, data=data), timeout=60) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)


def image(number: int) -> NDArray[np.uint8]:
    return draw(number, seed=0, size=96)[0]


def decoded(data: bytes) -> NDArray[np.uint8]:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels is not None
    return pixels.astype(np.uint8)


def test_many_images_at_once(served: tuple[str, Predictor]) -> None:
    address, predictor = served
    files = [cv2.imencode(".png", image(number))[1].tobytes() for number in range(12)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda data: post(address, data), files))
    for number, (status, mask, headers) in enumerate(answers):
        assert status == 200
        assert headers["content-type"] == "image/png"
        assert np.array_equal(decoded(mask), predictor.predict(image(number)) * 255)


def test_dicom(served: tuple[str, Predictor]) -> None:
    address, predictor = served
    status, mask, headers = post(address, chest(image(0)))
    assert status == 200
    agree = decoded(mask) == predictor.predict(image(0)) * 255
    # 12 bits are not 8, so that a few pixels may differ.
    assert agree.mean() > 0.98
    assert not any(IDENTITY["PatientName"] in value for value in headers.values())


@pytest.mark.parametrize(
    ("data", "status", "said"),
    [
        (b"no image", 422, b"unreadable"),
        (b"", 422, b"empty_file"),
        (b"x" * (service.MOST_BYTES + 1), 413, b"expected at most 67108864 bytes"),
    ],
    ids=["text", "nothing", "too large"],
)
def test_what_cannot_be_answered(served: tuple[str, Predictor], data: bytes, status: int, said: bytes) -> None:
    found, content, _ = post(served[0], data)
    assert found == status
    assert said in content


def test_other_addresses(served: tuple[str, Predictor]) -> None:
    status, content, _ = post(served[0].replace("masks", "other"), b"x")
    assert (status, content) == (404, b"expected POST /masks with the content of an image file\n")


def test_a_model_must_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(service.MODEL, raising=False)
    with pytest.raises(SystemExit, match="LUNGSEG_MODEL is not set"):
        service.build()
