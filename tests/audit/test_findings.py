from __future__ import annotations

from typing import Any

from lungseg_ray.audit.facts import LabelFacts
from lungseg_ray.audit.findings import Finding, list_findings, usual_parts
from lungseg_ray.corpus.record import SetAside
from tests.audit.helpers import LUNG, make_audit, make_facts, three_splits


def texts(found: list[Finding]) -> list[str]:
    return [f"{one.weight}: {one.text}" for one in found]


class TestFindings:
    def test_nothing_stands_out(self) -> None:
        assert list_findings(make_audit(three_splits())) == []

    def test_images_without_masks_that_are_equal(self) -> None:
        images = three_splits()
        more = [
            make_facts(name, image_sha256="a" * 64, mask_sha256="", labels={}, split="")
            for name in ("new", "new again")
        ]
        (found,) = [one for one in texts(list_findings(make_audit([*images, *more]))) if "same" in one]
        assert found == "look: 1 pair of images has the same pixels, and one or both of them no mask (new = new again)."

    def test_duplicates_by_weight(self) -> None:
        images = three_splits()
        copy = make_facts("copy", image_sha256=images[0].image_sha256, phash=images[0].phash, split="val")
        near = make_facts("near", phash=images[1].phash, split="test")
        same = make_facts(
            "same", image_sha256=images[2].image_sha256, phash=images[2].phash, mask_sha256=images[2].mask_sha256
        )
        found = texts(list_findings(make_audit([*images, copy, near, same])))
        assert found == [
            "mend: 1 pair of images with the same bytes stands across splits (train-0 = copy): the shards "
            "keep the first of each alone.",
            "mend: 1 pair of images that look the same stands across splits (train-1 ~ near): put them "
            "in one split, or give them one patient.",
            "look: 1 pair of images with the same bytes, within train (train-2 = same): the shards keep the first "
            "of each alone.",
            "look: 1 pair of images with the same bytes has different masks (train-0 = copy).",
        ]

    def test_torn_patients(self) -> None:
        found = texts(
            list_findings(
                make_audit(three_splits(), split_conflicts={f"p{number}": ["train", "val"] for number in range(5)})
            )
        )
        assert found[0] == "mend: Patient p0 stands in train and val: correct the column split."
        assert found[3] == "mend: 2 more patients stand in several splits."

    def test_masks(self) -> None:
        def lung(**change: Any) -> dict[str, LabelFacts]:
            plain = {key: getattr(LUNG, key) for key in LabelFacts.__slots__}
            return {"lung": LabelFacts(**{**plain, **change})}

        images = three_splits(8)
        images += [make_facts(f"one-{number}", labels=lung(parts=1)) for number in range(5)]
        images += [make_facts("speck", labels=lung(specks=7)), make_facts("cut", labels=lung(touches=("top", "left")))]
        images += [make_facts("empty", labels=lung(parts=0, share=0.0))]
        assert usual_parts(images, "lung") == 2
        assert texts(list_findings(make_audit(images))) == [
            "look: 1 mask of 32 has no lung.",
            "look: 5 masks have 1 part of lung where most have 2 (one-0, one-1, one-2, ...).",
            "look: 1 mask has specks of lung, 7 in all (speck).",
            "look: 1 mask of lung touches the image border (top 1, left 1).",
        ]

    def test_no_usual_number_of_parts(self) -> None:
        images = [
            make_facts(f"x{number}", labels={"lung": LabelFacts(0.3, 1 + number % 3, 0, None, (), 0.5, 0.5, 0.5)})
            for number in range(9)
        ]
        assert usual_parts(images, "lung") is None

    def test_twelve_bits_in_sixteen(self) -> None:
        # 4095 of 65535 is 15.93 of 255.
        images = three_splits(bits=16, brightest=16 / 255, high=0.6)
        assert texts(list_findings(make_audit(images))) == [
            "mend: 12 16-bit files use only values below 4096, and so are almost black: set corpus.white to 4095."
        ]
        images[0] = make_facts("bright", bits=16, brightest=17 / 255)
        assert list_findings(make_audit(images)) == []

    def test_what_is_set_aside_and_left(self) -> None:
        images = [*three_splits(), make_facts("bare", labels={}, mask_sha256="", split=None)]
        bad = [SetAside("a", "/a.png", "unreadable", "truncated")]
        assert texts(list_findings(make_audit(images, set_aside=bad, ignored=2))) == [
            "mend: 1 file cannot be used (unreadable): the file cannot be read or decoded.",
            "know: 1 image has no mask and no use in training.",
            "know: 2 files of other kinds lie in the corpus.",
        ]

    def test_sides_and_groups(self) -> None:
        images = [
            make_facts(f"x{at}", split="train" if at < 6 else "val", groups={"sex": "fm"[at % 6 == 0 and at < 6]})
            for at in range(9)
        ]
        assert texts(list_findings(make_audit(images))) == [
            "look: No image stands in test.",
            "know: 1 image has sex m, none of them in val.",
        ]

    def test_exposure_and_kinds(self) -> None:
        images = three_splits()
        images[0] = make_facts("black", black=0.5, bits=16, spacing=(0.1, 0.1))
        images[1] = make_facts("flat", low=0.4, high=0.5, format="jpeg")
        assert texts(list_findings(make_audit(images))) == [
            "look: 1 image has more than 20 % black pixels (black).",
            "look: 1 image has little contrast: 98 % of the pixels within 0.15 of the range (flat).",
            "know: The corpus mixes bits per value (8: 11, 16: 1).",
            "know: The corpus mixes file formats (png: 11, jpeg: 1).",
            "know: The pixel spacing is known of 1 of 12 images.",
        ]
