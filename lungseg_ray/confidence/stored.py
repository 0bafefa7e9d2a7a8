"""What a model needs to say how good its masks are expected to be: `confidence.json` beside its weights."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError

from lungseg_ray.confidence.calibration import Calibration, Estimate
from lungseg_ray.confidence.signals import Examined, Reference
from lungseg_ray.errors import UserError
from lungseg_ray.inference.predictor import Model, Processing
from lungseg_ray.run.exported import CONFIDENCE
from lungseg_ray.run.folder import BEST, Run


class Confidence(BaseModel):
    """The content of `confidence.json`.

    Attributes:
        reference: The training images, as far as others are compared with them.
        calibration: The expected Dice, given the signals of an image.
    """

    model_config = ConfigDict(frozen=True)
    reference: Reference
    calibration: Calibration

    def estimate(self, examined: Examined, number: int, processing: Processing) -> Estimate:
        """Returns what is expected of the mask of an image.

        Args:
            examined: What the networks say about some images.
            number: The number of the image among them.
            processing: That of the model.
        """
        return self.calibration.estimate(self.reference.signals(examined, number, processing))


def write_confidence(run: Run, confidence: Confidence) -> None:
    """Writes the confidence of the best model of a run beside its weights.

    Args:
        run: The run.
        confidence: Its confidence.

    Raises:
        OSError: If the file cannot be written.
    """
    (run.place / BEST / CONFIDENCE).write_text(confidence.model_dump_json() + "\n")


def confidence_of(model: Model) -> Confidence | None:
    """Reads the confidence of a model.

    Args:
        model: The model.

    Returns:
        The confidence; None if the model has none, as one whose corpus has fewer than ten validation images, or if it
        is used otherwise than it was calibrated: averaged with others, or over other mirror images.

    Raises:
        UserError: If the file holds something else.
        OSError: If a bucket cannot be used.
    """
    if len(model.runs) > 1 or model.used_flips != model.processing().sidecar.flips:
        return None
    place = model.runs[0].place / BEST / CONFIDENCE
    try:
        return Confidence.model_validate_json(place.read_text())
    except FileNotFoundError:
        return None
    except (ValidationError, UnicodeDecodeError) as error:
        raise UserError(f"{place}: cannot be read: {error}") from None
