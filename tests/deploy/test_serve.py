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
from lungseg_ray.confidence.calibration import Calibration
from lungseg_ray.confidence.signals import SIGNALS, Reference, describe_labels
from lungseg_ray.confidence.stored import Confidence, write_confidence
from lungseg_ray.corpus.phantom import draw
from lungseg_ray.inference.predictor import Predictor, load_predictor
from lungseg_ray.run.folder import BEST, Run
from lungseg_ray.storage import locate
from tests.corpus.dicoms import IDENTITY, chest
from tests.inference.helpers import save_small_model

Answer = tuple[int, bytes, dict[str, str]]


@pytest.fixture(scope="module")
def served(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Predictor]]:
    """The address of the service, and the model that it serves."""
    run = tmp_path_factory.mktemp("run")
    save_small_model(locate(str(run)) / BEST, longer_side=64)
    write_confidence(Run(locate(str(run))), confidence(load_predictor(locate(str(run)) / BEST)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(service.MODEL, str(run))
        serve.start(http_options=serve.HTTPOptions(host="127.0.0.1", port=port))
        serve.run(service.app, name="masks")
    yield f"http://127.0.0.1:{port}/masks", load_predictor(locate(str(run)) / BEST)
    serve.shutdown()


def confidence(predictor: Predictor) -> Confidence:
    """A confidence that rests on four phantoms."""
    (inputs,) = predictor.inputs([image(number)[:, :, None] for number in range(4)])
    masks = np.array([describe_labels(draw(number, seed=0, size=96)[1], 1) for number in range(4)])
    reference = Reference.of(predictor.features(inputs), masks)
    each = dict.fromkeys(SIGNALS, 1.0)
    calibration = Calibration(weights=each, offset=-1.0, half_range=0.5, usual=each, unlike=1e-6, images=10)
    return Confidence(reference=reference, calibration=calibration)


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
        low, dice, high = (float(headers[f"x-expected-{name}"]) for name in ("low", "dice", "high"))
        assert 0 <= low <= dice <= high <= 1
        assert headers["x-unlike"] == "1.0"
        assert np.array_equal(decoded(mask), predictor.predict(image(number)) * 255)


def test_dicom(served: tuple[str, Predictor], capfd: pytest.CaptureFixture[str]) -> None:
    address, predictor = served
    status, mask, headers = post(address, chest(image(0)))
    assert status == 200
    agree = decoded(mask) == predictor.predict(image(0)) * 255
    # 12 bits are not 8, so that a few pixels may differ.
    assert agree.mean() > 0.98
    # A damaged file is answered without what is in it, too.
    code, content, _ = post(address, chest(image(0))[:-100])
    assert code == 422
    logs = Path("/tmp/ray/session_latest/logs/serve").glob("*")
    texts = [
        str(headers),
        content.decode(),
        *capfd.readouterr(),
        *(path.read_text() for path in logs if path.is_file()),
    ]
    assert len(texts) > 4
    assert not any(value in text for value in IDENTITY.values() for text in texts)


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
    with pytest.raises(SystemExit, match="LUNGSEG_SERVE_MODEL is not set"):
        service.build()
    monkeypatch.setenv(service.MODEL, str(tmp_path / "nowhere"))
    with pytest.raises(SystemExit, match=r"LUNGSEG_SERVE_MODEL: .*nowhere/best: no trained model here"):
        service.build()


@pytest.mark.parametrize("gpus", ["many", "-1", "nan", "1.5", "inf"])
def test_a_number_of_gpus_that_none_can_have(monkeypatch: pytest.MonkeyPatch, gpus: str) -> None:
    monkeypatch.setenv(service.MODEL, "runs/mine")
    monkeypatch.setenv(service.GPUS, gpus)
    with pytest.raises(SystemExit, match="LUNGSEG_SERVE_GPUS: expected a number of GPUs"):
        service.build()
