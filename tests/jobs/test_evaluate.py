from __future__ import annotations

from pathlib import Path

import pytest

from lungseg_ray.config import CorpusSettings
from lungseg_ray.errors import UserError
from lungseg_ray.jobs.evaluate import _name_of, _refuse_other_corpus, corpus_images
from lungseg_ray.storage import locate
from tests.corpus.trees import fill
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


def test_how_files_are_read_is_not_taken_from_the_training(tmp_path: Path) -> None:
    """Training masks were inverted, and their images in a folder of another name; this corpus is an ordinary one."""
    inverted = {"root": "/data/real", "images": ["scans"], "mask_values": {"0": 1, "255": 0}, "mask_threshold": 0.25}
    corpus = fill(tmp_path, *(f"{folder}/{number}.png" for folder in ("images", "masks") for number in range(3)))
    images, _ = corpus_images(
        make_settings(corpus=inverted), CorpusSettings.model_validate({"root": str(corpus)}), None
    )
    assert len(images) == 3
    assert (images.corpus.images, images.corpus.mask_values, images.corpus.mask_threshold) == ([], {}, None)


def test_images_of_which_a_corpus_says_that_nothing_is_marked_are_kept(tmp_path: Path) -> None:
    fill(tmp_path, *(f"images/{number}.png" for number in range(3)))
    (tmp_path / "rle.csv").write_text("ImageId,EncodedPixels\n0,1 4 20 4\n1,-1\n2,3 5\n")
    asked = CorpusSettings.model_validate({"root": str(tmp_path)})
    for empty_masks in ("set_aside", "keep"):
        images, _ = corpus_images(make_settings(corpus={"empty_masks": empty_masks}), asked, None)
        assert images.corpus.empty_masks == "keep"


@pytest.mark.parametrize(
    ("root", "name"),
    [
        ("/data/lungs.v1", "lungs.v1"),
        ("/data/lungs.v2", "lungs.v2"),
        ("/data/list.csv", "list"),
        (["/a/site.1", "s3://b/site.2"], "site.1+site.2"),
        ("phantom", "phantom"),
    ],
)
def test_each_corpus_has_a_folder_of_its_own(root: str | list[str], name: str) -> None:
    assert _name_of(CorpusSettings.model_validate({"root": root})) == name


def test_the_figures_of_another_corpus_are_not_overwritten(tmp_path: Path) -> None:
    out = locate(str(tmp_path / "corpus-lungs"))
    _refuse_other_corpus(out, "/a/lungs")
    (out / "evaluation.json").write_text('{"corpus": "/a/lungs", "n": 3}')
    _refuse_other_corpus(out, "/a/lungs")
    with pytest.raises(
        UserError, match=r"the figures of /a/lungs are there, of the same name\. Measure this corpus alone"
    ):
        _refuse_other_corpus(out, "/b/lungs")
