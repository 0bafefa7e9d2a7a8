"""What the job says of a corpus before it builds shards."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from rich.console import Console

from lungseg_ray.config import ShardJob
from lungseg_ray.corpus.phantom import draw
from lungseg_ray.jobs.shard import main


def test_dry_run(tmp_path: Path) -> None:
    for folder in ("train/images", "train/masks", "test/images", "test/masks"):
        (tmp_path / "corpus" / folder).mkdir(parents=True)
    for number in range(12):
        image, mask = draw(number, seed=0, size=96)
        split = "train" if number < 8 else "test"
        cv2.imwrite(str(tmp_path / f"corpus/{split}/images/person{number // 2}_{number}.png"), image)
        cv2.imwrite(str(tmp_path / f"corpus/{split}/masks/person{number // 2}_{number}_mask.png"), mask * np.uint8(200))
    (tmp_path / "corpus/test/images/person9_99.png").write_bytes(b"")
    console = Console(record=True, width=300)
    main(
        ShardJob.model_validate(
            {"corpus": {"root": str(tmp_path / "corpus")}, "shards": {"root": str(tmp_path / "out")}, "dry_run": True}
        ),
        console,
    )
    text = console.export_text()
    assert "12 images with masks, layout pairs (found test/images/ and train/images/ and test/masks/" in text
    assert "names differ by _mask (12)" in text
    assert "patients: 6 patients from the names, as the word before a number: " in text
    assert "masks: values 0 and 200, of which 200 marks (corpus.mask_values)" in text
    assert "splits: the corpus has no val, which is taken from train" in text
    assert "test   4 images of 2 patients" in text
    assert "no_mask: expected a mask of test/images/person9_99.png" in text
    picture = cv2.imread(str(tmp_path / "out/dry_run.png"))
    assert picture is not None
    # Three pictures side by side, with red outlines.
    assert picture.shape[1] > 2 * picture.shape[0]
    assert ((picture[:, :, 2] > 200) & (picture[:, :, 1] < 140)).sum() > 300
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["dry_run.png"]
