from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus.decode import decode_image, decode_mask
from lungseg_ray.corpus.phantom import draw
from lungseg_ray.corpus.read import read_image, read_sample
from lungseg_ray.corpus.record import MaskSource, Record, Sample
from lungseg_ray.errors import BadFileError
from tests.corpus.kinds import raw_png, turned
from tests.helpers import DATA, mapped

LUNGS = DATA / "cxr-lungs"


def encoded(pixels: NDArray[np.uint8] | NDArray[np.uint16], suffix: str = ".png", *options: int) -> bytes:
    """The file's bytes; colours are given in BGR."""
    return bytes(cv2.imencode(suffix, pixels, list(options))[1])


def smooth(height: int, width: int) -> NDArray[np.uint8]:
    noise = np.random.default_rng(0).integers(0, 256, (height, width), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 3)


def ellipse(height: int, width: int) -> NDArray[np.uint8]:
    mask = np.zeros((height, width), np.uint8)
    cv2.ellipse(mask, (int(width * 0.45), int(height * 0.52)), (width // 4, height // 3), 20, 0, 360, 1, -1)
    return mask


class TestDecodeImage:
    def test_grey_8_bit(self) -> None:
        # (2, 3) -> (2, 3, 1)
        pixels = np.array([[0, 1, 2], [253, 254, 255]], np.uint8)
        decoded = decode_image(encoded(pixels), channels=1).pixels
        assert decoded.dtype == np.uint8
        np.testing.assert_array_equal(decoded, pixels[:, :, None])

    def test_grey_16_bit_is_scaled_by_the_formats_maximum(self) -> None:
        # 65535 -> 255; 128 -> 0.498 -> 0; 129 -> 0.502 -> 1; 257 -> 1; 32768 -> 127.502 -> 128
        pixels = np.array([[65535, 128, 129, 257, 32768]], np.uint16)
        assert decode_image(encoded(pixels), channels=1).pixels[0, :, 0].tolist() == [255, 0, 1, 1, 128]

    def test_grey_is_repeated_for_three_channels(self) -> None:
        assert decode_image(encoded(np.array([[7, 9]], np.uint8)), channels=3).pixels.tolist() == [
            [[7, 7, 7], [9, 9, 9]]
        ]

    def test_colour_is_rgb_and_its_first_channel_is_red(self) -> None:
        # One pixel of red 30, green 20, blue 10.
        data = encoded(np.array([[[10, 20, 30]]], np.uint8))
        assert decode_image(data, channels=3).pixels.tolist() == [[[30, 20, 10]]]
        assert decode_image(data, channels=1).pixels.tolist() == [[[30]]]

    def test_alpha_is_dropped(self) -> None:
        data = encoded(np.array([[[10, 20, 30, 5]]], np.uint8))
        assert decode_image(data, channels=3).pixels.tolist() == [[[30, 20, 10]]]
        grey_alpha = raw_png(1, 1, bytes([0, 77, 5]), colour=4)
        assert decode_image(grey_alpha, channels=1).pixels.tolist() == [[[77]]]

    def test_a_file_that_asks_to_be_turned_is_set_aside(self) -> None:
        # Orientation 6 is a quarter turn.
        pixels = smooth(20, 30)
        upright = cv2.imdecode(np.frombuffer(turned(6, pixels), np.uint8), cv2.IMREAD_COLOR)
        assert upright is not None
        assert upright.shape == (30, 20, 3)
        with pytest.raises(BadFileError, match=r"rotated: .*orientation 6"):
            decode_image(turned(6, pixels), channels=1)
        assert decode_image(turned(1, pixels), channels=1).pixels.shape == (20, 30, 1)
        # Without a mask, there is only one way up.
        for orientation in range(1, 9):
            expected = cv2.imdecode(np.frombuffer(turned(orientation, pixels), np.uint8), cv2.IMREAD_GRAYSCALE)
            assert expected is not None
            found = decode_image(turned(orientation, pixels), channels=1, alone=True)
            assert np.array_equal(found.pixels[:, :, 0], expected)
            assert (found.height, found.width) == found.pixels.shape[:2]

    @pytest.mark.parametrize("suffix", [".png", ".jpg"])
    @pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.999])
    def test_truncated_file(self, suffix: str, share: float) -> None:
        data = encoded(smooth(200, 300), suffix)
        with pytest.raises(BadFileError, match=r"unreadable: (truncated|damaged)"):
            decode_image(data[: int(len(data) * share)], channels=1)

    def test_truncated_progressive_jpeg(self) -> None:
        data = encoded(smooth(200, 300), ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
        assert decode_image(data, channels=1).pixels.shape == (200, 300, 1)
        with pytest.raises(BadFileError, match=r"unreadable: .*truncated"):
            decode_image(data[: len(data) // 2], channels=1)

    def test_end_marker_of_a_preview_is_not_the_end(self) -> None:
        preview = encoded(smooth(8, 8), ".jpg")
        plain = encoded(smooth(200, 300), ".jpg")
        data = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(preview) + 2) + preview + plain[2:]
        assert decode_image(data, channels=1).pixels.shape == (200, 300, 1)
        with pytest.raises(BadFileError, match=r"unreadable: .*truncated"):
            decode_image(data[: len(data) - 500], channels=1)

    def test_bytes_after_the_end_do_no_harm(self) -> None:
        assert decode_image(encoded(smooth(8, 9), ".jpg") + b"\0\0", channels=1).pixels.shape == (8, 9, 1)

    @pytest.mark.parametrize(
        ("data", "reason"),
        [(b"", "empty_file"), (b"GIF89a....", "unreadable"), (b"\x89PNG\r\n\x1a\nIEND\xaeB`\x82", "unreadable")],
    )
    def test_not_an_image(self, data: bytes, reason: str) -> None:
        with pytest.raises(BadFileError) as caught:
            decode_image(data, channels=1)
        assert caught.value.reason == reason


class TestDecodeMask:
    def test_values_become_labels(self) -> None:
        # (1, 4), values 0 7 200 255 -> labels 0 2 1 ignore
        data = encoded(np.array([[0, 7, 200, 255]], np.uint8))
        labels = decode_mask(data, mapped({0: 0, 200: 1, 7: 2, 255: "ignore", 9: 1}))
        assert labels.dtype == np.uint8
        assert labels.tolist() == [[0, 2, 1, 255]]

    def test_unknown_values_are_named_and_counted(self) -> None:
        data = encoded(np.array([[0, 3, 3, 9]], np.uint8))
        with pytest.raises(BadFileError, match=r"unknown_label.* 0, 1, 255 of .*3 \(2 px\), 9 \(1 px\)"):
            decode_mask(data, CorpusSettings())

    def test_16_bit_values_are_not_scaled(self) -> None:
        data = encoded(np.array([[0, 1, 65535, 300]], np.uint16))
        assert decode_mask(data, mapped({0: 0, 1: 1, 65535: 1, 300: 0})).tolist() == [[0, 1, 1, 0]]

    def test_1_bit(self) -> None:
        # 0b10100000: the first three pixels are 1 0 1.
        assert decode_mask(raw_png(3, 1, b"\0\xa0", bits=1), CorpusSettings()).tolist() == [[1, 0, 1]]

    def test_grey_palette(self) -> None:
        palette = (b"PLTE", bytes([0, 0, 0, 255, 255, 255]))
        data = raw_png(2, 1, bytes([0, 1, 0]), colour=3, chunks=[palette])
        assert decode_mask(data, CorpusSettings()).tolist() == [[1, 0]]

    def test_three_equal_channels(self) -> None:
        data = encoded(np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8))
        assert decode_mask(data, CorpusSettings()).tolist() == [[0, 1]]

    @pytest.mark.parametrize("pixel", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
    def test_colours_are_refused(self, pixel: tuple[int, int, int]) -> None:
        with pytest.raises(BadFileError, match="coloured_mask"):
            decode_mask(encoded(np.array([[pixel]], np.uint8)), CorpusSettings())


class TestReadSample:
    def read(self, folder: Path, image: bytes, mask: bytes, **settings: object) -> Sample:
        (folder / "image.png").write_bytes(image)
        (folder / "mask.png").write_bytes(mask)
        record = Record("x", str(folder / "image.png"), (MaskSource(str(folder / "mask.png")),), "x")
        return read_sample(record, CorpusSettings.model_validate(settings), longer_side=32)

    def test_pair(self, tmp_path: Path) -> None:
        image, mask = encoded(smooth(64, 48)), encoded(ellipse(64, 48) * np.uint8(255))
        sample = self.read(tmp_path, image, mask, channels=3)
        assert sample.image.shape == (32, 24, 3)
        assert sample.mask.shape == (32, 24)
        assert set(np.unique(sample.mask)) == {0, 1}
        assert (sample.source_height, sample.source_width, sample.spacing) == (64, 48, None)
        assert sample.image_sha256 == hashlib.sha256(image).hexdigest()
        assert sample.mask_sha256 == hashlib.sha256(mask).hexdigest()
        alone = read_image(str(tmp_path / "image.png"), channels=3, longer_side=32)
        np.testing.assert_array_equal(alone.pixels, sample.image)
        assert (alone.height, alone.width, alone.bits, alone.spacing) == (64, 48, 8, None)

    def test_size_mismatch_names_both(self, tmp_path: Path) -> None:
        with pytest.raises(BadFileError, match=r"size_mismatch.*48 x 64.*40 x 64"):
            self.read(tmp_path, encoded(smooth(64, 48)), encoded(ellipse(64, 40)))

    def test_empty_mask(self, tmp_path: Path) -> None:
        # Ignored pixels alone mark nothing.
        image, mask = encoded(smooth(32, 32)), encoded(np.array([[0, 9] * 16] * 32, np.uint8))
        values = {0: 0, 1: 1, 9: "ignore"}
        with pytest.raises(BadFileError, match="empty_mask"):
            self.read(tmp_path, image, mask, mask_values=values)
        kept = self.read(tmp_path, image, mask, mask_values=values, empty_masks="keep")
        assert set(np.unique(kept.mask)) == {0, 255}

    def test_missing_files(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(encoded(smooth(32, 32)))
        record = Record("a", str(tmp_path / "a.png"), (MaskSource(str(tmp_path / "b.png")),), "a")
        with pytest.raises(BadFileError, match=r"unreadable: the mask: .*no such file"):
            read_sample(record, CorpusSettings(), longer_side=32)
        with pytest.raises(BadFileError, match="no_mask"):
            read_sample(Record("a", str(tmp_path / "a.png"), (), "a"), CorpusSettings(), longer_side=32)

    def test_phantom(self) -> None:
        record = Record("p", "phantom://3/64/5", (MaskSource("phantom://3/64/5"),), "p")
        sample = read_sample(record, mapped({0: 0, 255: 1}), longer_side=64)
        image, mask = draw(5, seed=3, size=64)
        np.testing.assert_array_equal(sample.image[:, :, 0], image)
        np.testing.assert_array_equal(sample.mask, mask)
        np.testing.assert_array_equal(read_image("phantom://3/64/5", channels=1, longer_side=64).pixels, sample.image)

    def test_real_pair(self) -> None:
        if not LUNGS.exists():
            pytest.skip(f"needs the real X-rays in {LUNGS}")
        image = sorted((LUNGS / "images").iterdir())[0]
        record = Record("r", str(image), (MaskSource(str(LUNGS / "masks" / f"{image.stem}.png")),), "r")
        sample = read_sample(record, CorpusSettings(), longer_side=1024)
        assert max(sample.image.shape) <= 1024
        assert sample.image.shape == (*sample.mask.shape, 1)
        assert 0.05 < sample.mask.mean() < 0.6
