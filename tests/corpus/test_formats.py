from __future__ import annotations

import io
from typing import Any

import cv2
import nibabel
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageOps

from lungseg_ray.config import CorpusSettings
from lungseg_ray.corpus import picture
from lungseg_ray.corpus.decode import decode_image, decode_mask
from lungseg_ray.corpus.formats import decode_file, oriented
from lungseg_ray.corpus.picture import Picture
from lungseg_ray.errors import BadFileError
from tests.corpus.kinds import pillow, raw_png, tiff
from tests.fuzz.mutate import with_checksums
from tests.helpers import mapped

RAMP: NDArray[np.uint8] = np.add.outer(np.arange(40), np.arange(50)).astype(np.uint8)


def reason(data: bytes, **options: Any) -> str:
    with pytest.raises(BadFileError) as caught:
        decode_image(data, channels=1, **options)
    return caught.value.reason


class TestTiff:
    @pytest.mark.parametrize("compression", [None, "zlib", "lzw", "packbits"])
    @pytest.mark.parametrize("order", ["<", ">"])
    def test_8_and_16_bits(self, compression: str | None, order: str) -> None:
        for pixels in (RAMP, RAMP.astype(np.uint16) * 200):
            picture = decode_file(tiff(pixels, compression=compression, byteorder=order))
            np.testing.assert_array_equal(picture.pixels, pixels)
            assert (picture.pixels.dtype, picture.bits) == (pixels.dtype, 8 * pixels.itemsize)

    def test_tiles_and_predictor(self) -> None:
        big = np.tile(RAMP.astype(np.uint16), (4, 4))
        data = tiff(big, tile=(64, 64), compression="zlib", predictor=True)
        np.testing.assert_array_equal(decode_file(data).pixels, big)

    def test_float_from_0_to_1(self) -> None:
        # 0.5 -> 127.5 -> 128 (rounded to even)
        data = tiff(np.array([[0, 0.5, 1]], np.float32))
        assert decode_image(data, channels=1).pixels[0, :, 0].tolist() == [0, 128, 255]

    def test_float_to_a_white_that_is_declared(self) -> None:
        data = tiff(np.array([[0, 1000, 4000]], np.float64))
        assert reason(data) == "out_of_range"
        assert decode_image(data, channels=1, white=4000).pixels[0, :, 0].tolist() == [0, 64, 255]

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_not_finite(self, bad: float) -> None:
        assert reason(tiff(np.array([[0, bad, 1]], np.float32))) == "not_finite"

    def test_floats_to_1_where_white_is_something_else(self) -> None:
        # All of it would be black.
        assert reason(tiff(np.array([[0, 0.5, 1]], np.float32)), white=4095) == "out_of_range"

    def test_negative(self) -> None:
        assert reason(tiff(np.array([[-0.1, 1]], np.float32))) == "out_of_range"

    def test_white_is_zero(self) -> None:
        data = tiff(np.array([[0, 55, 255]], np.uint8), photometric="miniswhite")
        assert decode_image(data, channels=1).pixels[0, :, 0].tolist() == [255, 200, 0]

    def test_one_bit(self) -> None:
        mask = RAMP > 40
        data = tiff(mask, photometric="minisblack")
        assert decode_file(data).bits == 1
        np.testing.assert_array_equal(decode_mask(data, CorpusSettings()), mask)
        np.testing.assert_array_equal(
            decode_mask(pillow(Image.fromarray(mask), "TIFF", compression="group4"), CorpusSettings()), mask
        )

    def test_a_mask_that_viewers_and_programs_read_differently(self) -> None:
        # tifffile writes truth values so that a viewer shows True as black.
        with pytest.raises(BadFileError, match=r"unsupported: .*MinIsWhite"):
            decode_mask(tiff(RAMP > 40), CorpusSettings())

    @pytest.mark.parametrize("planar", ["contig", "separate"])
    def test_colours(self, planar: str) -> None:
        pixels = np.stack([RAMP, RAMP // 2, RAMP // 3], 2)
        stored = pixels if planar == "contig" else np.moveaxis(pixels, 2, 0)
        data = tiff(stored, photometric="rgb", planarconfig=planar)
        np.testing.assert_array_equal(decode_image(data, channels=3).pixels, pixels)

    def test_several_pages(self) -> None:
        assert reason(tiff(np.stack([RAMP, RAMP, RAMP]), photometric="minisblack")) == "multi_frame"

    def test_a_preview_is_not_a_page(self) -> None:
        file = io.BytesIO()
        with tifffile.TiffWriter(file) as writer:
            writer.write(RAMP)
            writer.write(RAMP[::2, ::2], subfiletype=1)
        np.testing.assert_array_equal(decode_file(file.getvalue()).pixels, RAMP)

    def test_truncated(self) -> None:
        # The pixels of an uncompressed file lie at its end.
        assert reason(tiff(RAMP)[:-100]) == "unreadable"

    def test_tiles_that_are_missing(self) -> None:
        # Of 3 x 4 tiles, 2 x 4 are there.
        data = bytearray(tiff(RAMP, tile=(16, 16)))
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            tags = file.pages[0].aspage().tags
            for name in ("TileOffsets", "TileByteCounts"):
                data[tags[name].offset + 4] = 8
        assert reason(bytes(data)) == "unreadable"

    @pytest.mark.parametrize(
        ("tag", "value", "expected"),
        [
            ("SamplesPerPixel", 0, "multi_frame"),
            ("SamplesPerPixel", 5, "multi_frame"),
            ("PhotometricInterpretation", 2, "unreadable"),
            ("BitsPerSample", 77, "unsupported"),
        ],
    )
    def test_tags_that_do_not_fit(self, tag: str, value: int, expected: str) -> None:
        data = bytearray(tiff(RAMP))
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            data[file.pages[0].aspage().tags[tag].valueoffset] = value
        assert reason(bytes(data)) == expected

    def test_turned(self) -> None:
        assert reason(tiff(RAMP, extratags=[(274, "H", 1, 6, True)])) == "rotated"
        # Without a mask, there is only one way up.
        for orientation in range(1, 9):
            data = tiff(RAMP, extratags=[(274, "H", 1, orientation, True)])
            with Image.open(io.BytesIO(data)) as image:
                expected = np.asarray(ImageOps.exif_transpose(image))
            found = decode_image(data, channels=1, alone=True)
            np.testing.assert_array_equal(found.pixels[:, :, 0], expected)
            assert (found.height, found.width) == expected.shape

    @pytest.mark.parametrize(
        ("pixels", "options"),
        [
            (RAMP.astype(np.int16), {}),
            (RAMP.astype(np.uint32), {}),
            (RAMP.astype(np.complex64), {}),
            (RAMP, {"compression": "jpeg2000"}),
        ],
    )
    def test_unsupported(self, pixels: NDArray[Any], options: dict[str, Any]) -> None:
        assert reason(tiff(pixels, **options)) == "unsupported"


class TestGif:
    def test_grey_and_black_and_white(self) -> None:
        np.testing.assert_array_equal(decode_file(pillow(Image.fromarray(RAMP), "GIF")).pixels, RAMP)
        mask = Image.fromarray(RAMP > 40)
        np.testing.assert_array_equal(decode_mask(pillow(mask, "GIF"), CorpusSettings()), RAMP > 40)

    def test_animated(self) -> None:
        frames = [Image.fromarray(RAMP), Image.fromarray(RAMP[::-1].copy())]
        assert reason(pillow(frames[0], "GIF", save_all=True, append_images=frames[1:])) == "multi_frame"


class TestPalette:
    def image(self) -> Image.Image:
        index = Image.fromarray((RAMP > 40).astype(np.uint8), "P")
        index.putpalette([10, 20, 30, 255, 0, 0])
        return index

    @pytest.mark.parametrize("kind", ["PNG", "GIF"])
    def test_a_mask_with_a_palette_of_colours_is_its_indices(self, kind: str) -> None:
        data = pillow(self.image(), kind)
        np.testing.assert_array_equal(decode_mask(data, CorpusSettings()), RAMP > 40)

    @pytest.mark.parametrize("kind", ["PNG", "GIF"])
    def test_an_image_is_what_a_viewer_shows(self, kind: str) -> None:
        shown = decode_image(pillow(self.image(), kind), channels=3).pixels
        assert shown[0, 0].tolist() == [10, 20, 30]
        assert shown[-1, -1].tolist() == [255, 0, 0]

    def test_of_a_tiff_file(self) -> None:
        index = (RAMP > 40).astype(np.uint8)
        colours = np.zeros((3, 256), np.uint16)
        colours[:, 1] = 65535, 0, 257
        data = tiff(index, photometric="palette", colormap=colours)
        np.testing.assert_array_equal(decode_mask(data, CorpusSettings()), index)
        assert decode_image(data, channels=3).pixels[-1, -1].tolist() == [255, 0, 1]


class TestFewBits:
    @pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7])
    def test_white_is_white(self, bits: int) -> None:
        data = tiff(np.array([[0, 2**bits - 1]] * 2, np.uint8), bitspersample=bits)
        assert decode_image(data, channels=1).pixels[0, :, 0].tolist() == [0, 255]
        assert decode_mask(data, mapped({0: 0, 2**bits - 1: 1}))[0].tolist() == [0, 1]

    @pytest.mark.parametrize("bits", [2, 4])
    def test_labels_of_a_png_are_not_spread(self, bits: int) -> None:
        # A row of two pixels, 0 and 1.
        data = raw_png(2, 1, bytes([0, 1 << (8 - 2 * bits)]), bits=bits)
        assert decode_mask(data, CorpusSettings()).tolist() == [[0, 1]]
        assert decode_image(data, channels=1).pixels[0, :, 0].tolist() == [0, 255 // (2**bits - 1)]


class TestPng:
    def test_bits_are_told(self) -> None:
        assert decode_file(pillow(Image.fromarray(RAMP > 40), "PNG")).bits == 1
        assert decode_file(pillow(Image.fromarray(RAMP.astype(np.uint16)), "PNG")).bits == 16

    def test_a_white_that_is_declared(self) -> None:
        data = pillow(Image.fromarray(np.array([[0, 1365, 4095]], np.uint16)), "PNG")
        assert decode_image(data, channels=1, white=4095).pixels[0, :, 0].tolist() == [0, 85, 255]
        assert reason(data, white=4000) == "out_of_range"

    def test_a_white_that_is_declared_is_not_for_8_bits(self) -> None:
        data = pillow(Image.fromarray(RAMP), "PNG")
        np.testing.assert_array_equal(decode_image(data, channels=1, white=4095).pixels[:, :, 0], RAMP)

    def test_every_flipped_bit_is_seen(self) -> None:
        # Each part of a PNG file has a checksum.
        data = pillow(Image.fromarray(RAMP), "PNG")
        rng = np.random.default_rng(0)
        for place in rng.integers(8, len(data) - 12, 200):
            damaged = bytearray(data)
            damaged[place] ^= 1 << int(rng.integers(8))
            with pytest.raises(BadFileError):
                decode_image(bytes(damaged), channels=1)

    @pytest.mark.parametrize(("at", "byte"), [(-30, 0x55), (26, 7), (28, 3)])
    def test_nothing_is_printed_of_damage(self, capfd: pytest.CaptureFixture[str], at: int, byte: int) -> None:
        # Where checksums fit, what is damaged is for libpng to say: compressed pixels, or fields of the first chunk.
        damaged = bytearray(pillow(Image.fromarray(RAMP), "PNG"))
        damaged[at] ^= byte
        assert reason(with_checksums(bytes(damaged))) == "unreadable"
        assert capfd.readouterr() == ("", "")

    def test_nothing_is_warned_of_a_size(self, recwarn: pytest.WarningsRecorder) -> None:
        data = bytearray(pillow(Image.fromarray(RAMP), "PNG"))
        data[16:24] = (10000).to_bytes(4, "big") * 2
        assert reason(with_checksums(bytes(data))) == "too_large"
        assert not recwarn.list

    def test_turned(self) -> None:
        exif = Image.Exif()
        exif[274] = 8
        assert reason(pillow(Image.fromarray(RAMP), "PNG", exif=exif)) == "rotated"

    def test_animated(self) -> None:
        frames = [Image.fromarray(RAMP), Image.fromarray(RAMP[::-1].copy())]
        assert reason(pillow(frames[0], "PNG", save_all=True, append_images=frames[1:])) == "multi_frame"


class TestJpeg:
    def test_the_pixels_are_those_of_opencv(self) -> None:
        for pixels in (RAMP, np.stack([RAMP, RAMP // 2, RAMP // 3], 2)):
            data = cv2.imencode(".jpg", pixels)[1].tobytes()
            shown = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            assert shown is not None
            expected = shown if shown.ndim == 2 else shown[:, :, ::-1]
            np.testing.assert_array_equal(decode_file(data).pixels, expected)

    def test_cmyk(self) -> None:
        assert reason(pillow(Image.fromarray(RAMP).convert("CMYK"), "JPEG")) == "unsupported"

    def test_a_bomb_of_scans(self) -> None:
        data = cv2.imencode(".jpg", RAMP)[1].tobytes()
        assert reason(data[:-2] + b"\xff\xda" * 200 + data[-2:]) == "too_large"


class TestJsrt:
    def test_12_bits_of_16_inverted(self) -> None:
        stored = np.zeros((2048, 2048), ">u2")
        stored[0, :3] = 0, 1365, 4095
        shown = decode_image(stored.tobytes(), channels=1, name="JPCLN001.IMG")
        assert shown.pixels[0, :3, 0].tolist() == [255, 170, 0]
        assert (shown.bits, shown.spacing) == (12, (0.175, 0.175))
        stored[9, 9] = 4096
        assert reason(stored.tobytes(), name="JPCLN001.IMG") == "out_of_range"
        assert reason(stored.tobytes(), name="JPCLN001.raw") == "unreadable"


class TestLimits:
    def test_pixels_are_counted_before_they_are_decoded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(picture, "MOST_PIXELS", 1999)
        for data in (
            pillow(Image.fromarray(RAMP), "PNG"),
            pillow(Image.fromarray(RAMP), "JPEG"),
            pillow(Image.fromarray(RAMP), "GIF"),
            tiff(RAMP),
        ):
            assert reason(data) == "too_large"

    def test_bytes_of_pixels_are_counted_before_they_are_decoded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # 40 x 50 px: 2000 bytes of 8 bits, 4000 of 16 bits, 8000 of RGBA
        monkeypatch.setattr(picture, "MOST_DECODED", 3999)
        assert decode_file(pillow(Image.fromarray(RAMP), "PNG")).pixels.shape == RAMP.shape
        deep = RAMP.astype(np.uint16)
        for data in (
            pillow(Image.fromarray(deep), "PNG"),
            pillow(Image.fromarray(RAMP).convert("RGBA"), "PNG"),
            tiff(deep, compression="zlib"),
            tiff(deep, tile=(64, 64)),
        ):
            assert reason(data) == "too_large"

    def test_what_is_said_of_other_files_quotes_nothing(self) -> None:
        with pytest.raises(BadFileError) as caught:
            decode_image(b"DOE^JANE 1970", channels=1)
        assert "DOE" not in str(caught.value)
        assert "are text" in str(caught.value)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_tiff_of_floats_whose_zero_is_white(kind: Any) -> None:
    pixels = np.linspace(0, 1, 400).reshape(20, 20).astype(kind)
    data = tiff(pixels, photometric="miniswhite")
    np.testing.assert_allclose(decode_file(data).pixels, 1 - pixels, atol=1e-6)
    assert reason(tiff((pixels * 255).astype(kind), photometric="miniswhite")) == "unsupported"
    with pytest.raises(BadFileError, match="MinIsWhite"):
        decode_file(data, use="mask")


class TestOrientationOfNifti:
    """Masks whose files specify other directions than those of their images, against nibabel's own reorientation."""

    PIXELS = np.arange(24 * 36, dtype=np.uint16).reshape(24, 36)

    def image(self, axes: str, *, affine: NDArray[Any] | None = None) -> nibabel.Nifti1Image:
        directions = nibabel.orientations.axcodes2ornt(axes)
        made = np.eye(4)
        made[:3, :3] = 0
        for column, (axis, sign) in enumerate(directions):
            made[int(axis), column] = 0.2 * sign
        return nibabel.Nifti1Image(self.PIXELS.T[:, :, None], made if affine is None else affine)

    def read(self, image: nibabel.Nifti1Image, axes: str = "") -> Picture:
        return oriented(decode_file(image.to_bytes(), name="a.nii", use="mask"), axes)

    @pytest.mark.parametrize("axes", ["LPS", "RAS", "LAS", "PLS", "ARI", "PRS"])
    def test_mask_lies_as_its_image(self, axes: str) -> None:
        image = self.image("LPS")
        mask = image.as_reoriented(
            nibabel.orientations.ornt_transform(
                nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(axes)
            )
        )
        assert nibabel.aff2axcodes(mask.affine) == tuple(axes)
        found = self.read(image)
        assert found.axes == "LP"
        assert np.array_equal(found.pixels, self.PIXELS)
        assert np.array_equal(self.read(mask, found.axes).pixels, self.PIXELS)

    def test_file_that_says_nothing(self) -> None:
        for image in (self.image("RAS", affine=np.eye(4)), nibabel.Nifti1Image(self.PIXELS.T, None)):
            found = self.read(image, "LP")
            assert found.axes == ""
            assert np.array_equal(found.pixels, self.PIXELS)

    def test_other_planes(self) -> None:
        with pytest.raises(BadFileError, match="expected the plane of its image, LP, found LI") as caught:
            self.read(self.image("LIP"), "LP")
        assert caught.value.reason == "orientation"
