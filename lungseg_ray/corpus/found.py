"""What was found out about how a corpus is to be read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.record import Record


@dataclass
class Found:
    """What was found out.

    Attributes:
        settings: The settings of the corpus, with what was found in place of what was not set.
        records: The records, with the scale of their masks.
        recognition: What was found, for the user.
        warnings: What the user should check, as sentences.
        glances: The same of the few images that were looked at, which whoever reads all of them knows better.
    """

    settings: CorpusSettings
    records: list[Record]
    recognition: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    glances: list[str] = field(default_factory=list)

    def set(self, **settings: Any) -> None:
        """Sets settings of the corpus to what was found."""
        self.settings = self.settings.model_copy(update=settings)
