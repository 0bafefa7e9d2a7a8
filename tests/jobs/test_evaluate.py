from __future__ import annotations

from lungseg_ray.config import CorpusSettings
from lungseg_ray.jobs.evaluate import corpus_images
from tests.helpers import make_settings


def test_what_is_set_to_its_default_counts_and_what_is_not_set_is_that_of_the_training() -> None:
    corpus = {"root": "/data/real", "empty_masks": "keep", "class_names": ["heart"], "mask_scale": 2.0}
    trained = make_settings(corpus=corpus)
    asked = CorpusSettings.model_validate({"root": "phantom", "empty_masks": "set_aside", "phantom": {"count": 4}})
    images, listing = corpus_images(trained, asked, None)
    assert len(images) == len(listing.records) == 4
    found = images.corpus
    assert (found.root, found.empty_masks, found.class_names, found.mask_scale) == (
        "phantom",
        "set_aside",
        ["heart"],
        "auto",
    )
