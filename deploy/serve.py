"""Serves a trained model over HTTP: the file of an image in, its mask out. Nothing starts it but these commands.

    pip install -c constraints.txt -e '.[serve]'
    LUNGSEG_SERVE_MODEL=runs/mine serve run deploy.serve:app
    curl --data-binary @image.dcm http://127.0.0.1:8000/masks --output mask.png --dump-header -

The answer to a PNG, JPEG, TIFF or DICOM file is the mask as a PNG file of the size of the image: 0 and 255 for one
class, otherwise labels. Its headers say which Dice is expected of it, where the model knows. An image that cannot be
used is answered with status 422 and the reason; a body that is too large with 413. Answers and logs contain nothing of
the identity in DICOM files.
"""

from __future__ import annotations

import asyncio
import os
import threading
from dataclasses import dataclass

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from lungseg_ray.confidence.signals import examine
from lungseg_ray.confidence.stored import confidence_of
from lungseg_ray.corpus.decode import Decoded
from lungseg_ray.corpus.read import decode_alone
from lungseg_ray.errors import BadFileError, UserError
from lungseg_ray.imaging import png
from lungseg_ray.inference.predictor import Model
from lungseg_ray.run.folder import Run
from lungseg_ray.storage import locate

MODEL = "LUNGSEG_SERVE_MODEL"
"""The environment variable that names the folder or s3:// prefix of a finished run."""
GPUS = "LUNGSEG_SERVE_GPUS"
"""The environment variable that says how many GPUs, or what share of one, a replica has; none by default."""
MOST_BYTES = 64 << 20
"""The largest file that is accepted."""
MOST_QUEUED = 64
"""The requests that wait for a replica; further ones are answered with status 503 at once."""
BATCH, WAIT_SECONDS = 4, 0.02
"""The largest number of images of a forward pass, and how long an image waits for others."""


@dataclass(frozen=True)
class Masked:
    """The mask of an image: the content of its PNG file, and what is said of it in headers."""

    mask: bytes
    headers: dict[str, str]


@serve.deployment(max_ongoing_requests=2 * BATCH, max_queued_requests=MOST_QUEUED)
class Masks:
    """Predicts the masks of images that arrive at about the same time together.

    Args:
        run: Folder or s3:// prefix of a finished run.
    """

    def __init__(self, run: str) -> None:
        # A GPU that Ray has not given to this replica may be that of a training.
        device = "cuda" if ray.get_gpu_ids() else "cpu"
        model = Model((Run(locate(run)),))
        self._predictor = model.load(device=device)
        self._confidence = confidence_of(model)
        # Python's filters of warnings, which keep those of damaged files from the log, are those of all threads.
        self._decoding = threading.Lock()

    async def __call__(self, request: Request) -> Response:
        """Answers a request with a mask."""
        if request.method != "POST" or request.url.path != "/masks":
            return PlainTextResponse("expected POST /masks with the content of an image file\n", status_code=404)
        data = bytearray()
        async for part in request.stream():
            data += part
            if len(data) > MOST_BYTES:
                return PlainTextResponse(f"expected at most {MOST_BYTES} bytes\n", status_code=413)
        try:
            # In a thread, so that other requests are read meanwhile.
            image = await asyncio.to_thread(self._decode, bytes(data))
        except BadFileError as error:
            return PlainTextResponse(f"{error}\n", status_code=422)
        found: Masked = await self.predict(image)
        return Response(found.mask, media_type="image/png", headers=found.headers)

    def _decode(self, data: bytes) -> Decoded:
        side = self._predictor.sidecar
        with self._decoding:
            return decode_alone(data, "image", channels=side.channels, longer_side=side.longer_side, white=side.white)

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT_SECONDS)
    async def predict(self, images: list[Decoded]) -> list[Masked]:
        """Predicts the masks of some images.

        Args:
            images: The images.

        Returns:
            Their masks.
        """
        return await asyncio.to_thread(self._masks, images)

    def _masks(self, images: list[Decoded]) -> list[Masked]:
        predictor = self._predictor
        inputs = predictor.inputs([image.pixels for image in images])
        examined = examine(predictor, inputs[0], batch=BATCH) if self._confidence else None
        maps = [examined.maps] if examined else predictor.maps(inputs, batch=BATCH)
        sizes = [(image.height, image.width) for image in images]
        found = []
        for number, probability in enumerate(predictor.combine(maps, sizes)):
            labels = predictor.labels(probability)
            headers = {}
            if self._confidence and examined:
                estimate = self._confidence.estimate(examined, number, predictor)
                columns = {**estimate.columns(), "doubt": estimate.reason}
                headers = {f"X-{name.replace('_', '-').title()}": str(value) for name, value in columns.items()}
            found.append(Masked(png(labels * 255 if predictor.sidecar.classes == 1 else labels), headers))
        return found


def build() -> serve.Application:
    """Returns the application, for `serve run`.

    Raises:
        SystemExit: If no model is named, if it cannot be read, or if the number of GPUs is none.
    """
    run = os.environ.get(MODEL)
    if not run:
        raise SystemExit(f"{MODEL} is not set: give the folder or s3:// prefix of a finished run.")
    try:
        gpus = float(os.environ.get(GPUS) or 0)
    except ValueError:
        gpus = -1
    if not (0 <= gpus <= 1 or (gpus > 0 and gpus.is_integer())):
        raise SystemExit(f"{GPUS}: expected a number of GPUs, such as 1 or 0.5, found {os.environ[GPUS]!r}.")
    try:
        place = locate(run)
        model = Model((Run(place),))
        model.load()
        confidence_of(model)
    except (UserError, OSError) as error:
        raise SystemExit(f"{MODEL}: {error}") from None
    # Whole, since a replica has another working directory.
    replica = Masks.options(ray_actor_options={"num_cpus": 1, "num_gpus": gpus})  # type: ignore[attr-defined]
    application: serve.Application = replica.bind(place.uri)
    return application


def __getattr__(name: str) -> serve.Application:
    # Made when `serve run` asks for it, so that this file can be imported without a model.
    if name == "app":
        return build()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
