"""What is found out from the pixels of a few files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from lungseg_ray.corpus import probe
from lungseg_ray.corpus.layouts import Listing
from lungseg_ray.corpus.phantom import draw
from lungseg_ray.corpus.read import read_sample
from lungseg_ray.corpus.record import ANY_SCALE
from lungseg_ray.errors import BadFileError
from lungseg_ray.storage import StorageError
from tests.corpus.kinds import png, tiff
from tests.corpus.trees import listing

DRAWN = [draw(index, seed=0, size=96) for index in range(5)]
Change = Callable[[NDArray[np.uint8], int], NDArray[Any]]


def corpus(
    root: Path,
    *,
    image: Callable[[NDArray[np.uint8], int], NDArray[Any]] = lambda pixels, number: pixels,
    mask: Callable[[NDArray[np.uint8], int], NDArray[Any]] = lambda labels, number: labels * np.uint8(255),
    **settings: object,
) -> Listing:
    for folder in ("images", "masks"):
        (root / folder).mkdir(exist_ok=True)
    for number, (pixels, labels) in enumerate(DRAWN):
        one = image(pixels, number)
        name = f"images/{number}{'.tif' if one.dtype.kind == 'f' else '.png'}"
        (root / name).write_bytes(tiff(one) if one.dtype.kind == "f" else png(one))
        (root / f"masks/{number}.png").write_bytes(png(mask(labels, number)))
    return listing(root, **settings)


def smallest_dice(found: Listing) -> float:
    values = []
    for record, (_, labels) in zip(found.records, DRAWN, strict=True):
        mask = read_sample(record, found.corpus, longer_side=512).mask == 1
        truth = cv2.resize(labels, mask.shape[::-1], interpolation=cv2.INTER_NEAREST) == 1
        values.append(2 * np.logical_and(mask, truth).sum() / (mask.sum() + truth.sum()))
    return float(min(values))


def test_plain_files_need_nothing(tmp_path: Path) -> None:
    found = corpus(tmp_path)
    assert (found.corpus.white, found.corpus.mask_values, found.warnings) == (None, {}, [])
    assert [line for line in found.recognition if line.startswith(("white", "masks"))] == []


class TestWhite:
    @pytest.mark.parametrize(("factor", "white"), [(4, 1023), (16, 4095), (64, 16383)])
    def test_fewer_bits_in_16(self, factor: int, white: float, tmp_path: Path) -> None:
        found = corpus(tmp_path, image=lambda pixels, number: pixels.astype(np.uint16) * factor)
        assert isinstance(found.corpus.white, list)
        assert found.corpus.white[0] == white
        sample = read_sample(found.records[0], found.corpus, longer_side=512)
        assert abs(sample.image[:, :, 0].astype(int) - DRAWN[0][0]).max() <= 1

    def test_16_bits(self, tmp_path: Path) -> None:
        assert corpus(tmp_path, image=lambda pixels, number: pixels.astype(np.uint16) * 257).corpus.white is None

    def test_mixed_depths(self, tmp_path: Path) -> None:
        found = corpus(tmp_path, image=lambda pixels, number: pixels.astype(np.uint16) * (16, 257)[number % 2])
        assert "white: 4095 in 3, 65535 in 2 of 5 files" in "\n".join(found.recognition)
        for record, (pixels, _) in zip(found.records, DRAWN, strict=True):
            sample = read_sample(record, found.corpus, longer_side=512)
            assert abs(sample.image[:, :, 0].astype(int) - pixels).max() <= 1

    def test_floats(self, tmp_path: Path) -> None:
        found = corpus(tmp_path, image=lambda pixels, number: pixels.astype(np.float32))
        assert isinstance(found.corpus.white, list)
        assert found.corpus.white[0] == 255.0

    @pytest.mark.parametrize("first", [0, 255])
    def test_an_empty_first_channel(self, first: int, tmp_path: Path) -> None:
        def coloured(pixels: NDArray[np.uint8], number: int) -> NDArray[np.uint8]:
            # The files are written in BGR.
            return np.dstack([pixels, pixels, np.full_like(pixels, first)])

        assert "have (0, 1, 2, ...) the same value in all pixels" in corpus(tmp_path, image=coloured).glances[0]

    def test_what_the_user_says_holds(self, tmp_path: Path) -> None:
        found = corpus(tmp_path, image=lambda pixels, number: pixels.astype(np.uint16) * 16, white=65535)
        assert found.corpus.white == 65535
        assert "images are (0, 1, 2, ...) almost black" in found.glances[0]


class TestMasks:
    @pytest.mark.parametrize("value", [2, 77, 128, 254])
    def test_two_values(self, value: int, tmp_path: Path) -> None:
        found = corpus(tmp_path, mask=lambda labels, number: labels * np.uint8(value))
        assert found.corpus.mask_values == {0: 0, value: 1}
        assert smallest_dice(found) == 1.0

    def test_smooth_borders(self, tmp_path: Path) -> None:
        found = corpus(tmp_path, mask=lambda labels, number: cv2.GaussianBlur(labels * np.uint8(255), (5, 5), 0))
        assert found.corpus.mask_threshold == 0.5
        assert found.warnings == []
        assert smallest_dice(found) > 0.97

    def test_probabilities_are_doubtful(self, tmp_path: Path) -> None:
        found = corpus(tmp_path, mask=lambda labels, number: cv2.GaussianBlur(labels * np.uint8(255), (0, 0), 12))
        assert found.corpus.mask_threshold is not None
        assert "is a guess; set --corpus.mask_threshold" in found.warnings[0]

    def test_three_values_are_asked_for(self, tmp_path: Path) -> None:
        def labels_of(labels: NDArray[np.uint8], number: int) -> NDArray[np.uint8]:
            return labels * np.uint8(50) + labels * (np.arange(96) > 48).astype(np.uint8) * np.uint8(50)

        found = corpus(tmp_path, mask=labels_of)
        assert found.corpus.mask_values == {}
        assert """say --corpus.mask_values '{"0": 0, "50": 1, "100": 1}'""" in found.warnings[0]
        several = corpus(tmp_path, mask=labels_of, classes=3, class_names=["a", "b"])
        assert """say --corpus.mask_values '{"0": 0, "50": 1, "100": 2}'""" in several.warnings[0]

    @pytest.mark.parametrize("colour", [(255, 0, 0), (250, 50, 83), (0, 0, 128)])
    def test_one_colour(self, colour: tuple[int, int, int], tmp_path: Path) -> None:
        found = corpus(tmp_path, mask=lambda labels, number: labels[:, :, None] * np.array(colour, np.uint8))
        assert smallest_dice(found) == 1.0
        assert "one colour" in found.recognition[-1]

    def test_colours_by_name(self, tmp_path: Path) -> None:
        def coloured(labels: NDArray[np.uint8], number: int) -> NDArray[np.uint8]:
            right = np.arange(96) > 48
            # The files are written in BGR.
            return np.stack([labels * right * 255, labels * ~right * 200, labels * 0], 2).astype(np.uint8)

        values = {"0,0,0": 0, "#0000FF": 2, "0,200,0": 1}
        found = corpus(tmp_path, mask=coloured, classes=3, class_names=["left", "right"], mask_values=values)
        mask = read_sample(found.records[0], found.corpus, longer_side=512).mask
        assert np.array_equal(mask, DRAWN[0][1] * np.where(np.arange(96) > 48, 2, 1))

    @pytest.mark.parametrize("suffix", [".png", ".jpg"])
    def test_one_colour_with_smooth_borders(self, suffix: str, tmp_path: Path) -> None:
        def red(labels: NDArray[np.uint8], number: int) -> NDArray[np.uint8]:
            smooth = cv2.GaussianBlur(labels.astype(np.float32), (3, 3), 0.6)
            pixels = np.dstack([smooth * 0, smooth * 20, smooth * 220]).astype(np.uint8)
            return np.asarray(cv2.imdecode(cv2.imencode(suffix, pixels)[1], cv2.IMREAD_COLOR), np.uint8)

        found = corpus(tmp_path, mask=red)
        assert found.corpus.mask_threshold == pytest.approx(0.5 * 80 / 255, abs=0.01)
        assert smallest_dice(found) > 0.95
        assert not found.warnings

    def test_alpha(self, tmp_path: Path) -> None:
        found = corpus(
            tmp_path,
            mask=lambda labels, number: np.dstack([np.full((96, 96, 3), 255, np.uint8), labels * np.uint8(255)]),
        )
        assert found.corpus.mask_channel == "alpha"
        assert smallest_dice(found) == 1.0

    @pytest.mark.parametrize("size", [(48, 48), (72, 72), (192, 192)])
    def test_another_size(self, size: tuple[int, int], tmp_path: Path) -> None:
        found = corpus(
            tmp_path,
            mask=lambda labels, number: cv2.resize(labels * np.uint8(255), size, interpolation=cv2.INTER_NEAREST),
        )
        assert {record.mask_scales for record in found.records} == {(96 / size[0],)}
        assert smallest_dice(found) > 0.95

    def test_one_size_for_images_of_many(self, tmp_path: Path) -> None:
        found = corpus(
            tmp_path,
            image=lambda pixels, number: cv2.resize(pixels, (100 + 7 * number, 90 + 11 * number)),
            mask=lambda labels, number: cv2.resize(labels * np.uint8(255), (64, 64), interpolation=cv2.INTER_NEAREST),
        )
        assert {record.mask_scales for record in found.records} == {()}
        assert smallest_dice(found) > 0.95

    @pytest.mark.parametrize("every", [2, 3])
    def test_some_of_half_size(self, every: int, tmp_path: Path) -> None:
        def halved(labels: NDArray[np.uint8], number: int) -> NDArray[np.uint8]:
            return labels[:: 1 + (number % every == 0), :: 1 + (number % every == 0)] * np.uint8(255)

        found = corpus(tmp_path, mask=halved)
        assert {record.mask_scales for record in found.records} == {(1.0, 2.0)}
        assert f"{-(-len(found.records) // every)} of {len(found.records)} looked at of another size" in "".join(
            found.recognition
        )
        assert smallest_dice(found) > 0.95

    def test_one_of_another_size_is_set_aside(self, tmp_path: Path) -> None:
        found = corpus(tmp_path, mask=lambda labels, number: labels[:: 1 + (number == 0), :: 1 + (number == 0)])
        assert {record.mask_scales for record in found.records} == {(1.0,)}

    def test_most_of_half_size_and_some_cut(self, tmp_path: Path) -> None:
        def cut(labels: NDArray[np.uint8], number: int) -> NDArray[np.uint8]:
            return np.ascontiguousarray((labels[:50] if number % 4 == 0 else labels[::2, ::2]) * np.uint8(255))

        found = corpus(tmp_path, mask=cut)
        assert {record.mask_scales for record in found.records} == {(2.0,)}
        with pytest.raises(BadFileError, match="once enlarged 2 times, found 96 x 50 px"):
            read_sample(found.records[0], found.corpus, longer_side=512)

    def test_many_scales_with_the_proportions_of_their_images(self, tmp_path: Path) -> None:
        def resized(labels: NDArray[np.uint8], number: int) -> NDArray[np.uint8]:
            size = (30 + 7 * number, 30 + 7 * number)
            return cv2.resize(labels * np.uint8(255), size, interpolation=cv2.INTER_NEAREST)

        found = corpus(tmp_path, mask=resized)
        assert {record.mask_scales for record in found.records} == {ANY_SCALE}
        assert smallest_dice(found) > 0.9
        mask = Path(found.records[0].mask_uris[0])
        mask.write_bytes(png(np.full((40, 30), 255, np.uint8)))
        with pytest.raises(
            BadFileError, match="expected a mask with the proportions of the image, 96 x 96 px, found 30"
        ):
            read_sample(found.records[0], found.corpus, longer_side=512)

    def test_transposed(self, tmp_path: Path) -> None:
        found = corpus(
            tmp_path,
            image=lambda pixels, number: np.ascontiguousarray(pixels[:80]),
            mask=lambda labels, number: np.ascontiguousarray(labels[:80].T * np.uint8(255)),
        )
        assert "rows and columns exchanged" in found.warnings[0]

    def test_inverted(self, tmp_path: Path) -> None:
        found = corpus(tmp_path, mask=lambda labels, number: 255 - labels * np.uint8(255))
        assert "seem to be inverted" in found.glances[0]
        right = corpus(tmp_path, mask=lambda labels, number: 255 - labels * np.uint8(255), mask_values={0: 1, 255: 0})
        assert (right.warnings, right.glances, smallest_dice(right)) == ([], [], 1.0)

    def test_outlines(self, tmp_path: Path) -> None:
        def outline(labels: NDArray[np.uint8], number: int) -> NDArray[np.uint8]:
            return cv2.morphologyEx(labels, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) * np.uint8(255)

        assert "lines around areas that are not marked" in corpus(tmp_path, mask=outline).glances[0]

    def test_nothing_marked(self, tmp_path: Path) -> None:
        found = corpus(tmp_path, mask=lambda labels, number: labels * 0)
        assert "5 of 5 masks mark nothing" in found.warnings[0]
        assert corpus(tmp_path, mask=lambda labels, number: labels * 0, empty_masks="keep").warnings == []


def test_many_structures_are_no_smooth_borders(tmp_path: Path) -> None:
    """Labels 0 to 20, or 0 to 6 in few pixels, are not cut by a threshold."""
    for most in (20, 6):
        folder = tmp_path / str(most)
        folder.mkdir()

        def bands(labels: NDArray[np.uint8], number: int, most: int = most) -> NDArray[np.uint8]:
            drawn = np.zeros_like(labels)
            drawn[:4] = np.arange(labels.shape[1]) * (most + 1) // labels.shape[1]
            return drawn

        found = corpus(folder, mask=bands)
        assert found.corpus.mask_threshold is None
        assert any(line.startswith("The masks have the values 0, 1") for line in found.warnings) == (most == 6)


def test_a_dark_picture_among_others_says_nothing_of_white(tmp_path: Path) -> None:
    found = corpus(tmp_path, image=lambda pixels, number: (pixels.astype(np.uint16) * 257) * (number > 0))
    assert found.corpus.white is None
    (tmp_path / "dim").mkdir()
    dim = corpus(tmp_path / "dim", image=lambda pixels, number: pixels.astype(np.uint16) * (257 if number else 3))
    assert dim.corpus.white is None


def test_each_file_is_read_once_for_its_shape_and_its_alpha(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: Counter[str] = Counter()

    def counting(uri: str) -> bytes:
        read[Path(uri).parent.name] += 1
        return Path(uri).read_bytes()

    monkeypatch.setattr(probe, "fetch", counting)
    corpus(tmp_path)
    assert read == {"images": 5, "masks": 5}


def test_a_store_that_does_not_answer_is_no_bright_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(uri: str) -> bytes:
        raise StorageError("no answer")

    monkeypatch.setattr(probe, "fetch", silent)
    monkeypatch.setattr(probe, "PATIENCE_SECONDS", 0)
    with pytest.raises(StorageError, match="no answer"):
        corpus(tmp_path)
