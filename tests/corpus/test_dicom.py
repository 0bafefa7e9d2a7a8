from __future__ import annotations

import io
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from lungseg_ray.corpus import dicom
from lungseg_ray.corpus.decode import decode_image, decode_mask
from lungseg_ray.corpus.dicom_codecs import frame_shape
from lungseg_ray.corpus.formats import decode_file
from lungseg_ray.errors import BadFileError
from tests.corpus.dicoms import IDENTITY, chest, dataset, encoded, real
from tests.corpus.kinds import IMAGE, jpeg
from tests.helpers import mapped

RAMP: NDArray[np.uint16] = np.linspace(0, 4095, 64 * 64).round().astype(np.uint16).reshape(64, 64)


def shown(data: bytes) -> NDArray[Any]:
    """Grey values as a share of white."""
    picture = decode_file(data)
    return picture.pixels / picture.white


def compressed(stream: bytes | bytearray, syntax: uid.UID) -> bytes:
    """A file of 12 bits and the size of `RAMP`."""
    made = dataset(RAMP, bits=12, PixelData=encapsulate([bytes(stream)]))
    made.file_meta.TransferSyntaxUID = syntax
    return encoded(made)


def reason(data: bytes) -> str:
    with pytest.raises(BadFileError) as caught:
        decode_file(data)
    found = str(caught.value)
    assert not [value for value in IDENTITY.values() if value in found]
    return caught.value.reason


class TestGreyValues:
    def test_bits_stored_scale_the_values(self) -> None:
        # 12 of 16 bits: 4095 is white
        np.testing.assert_allclose(shown(encoded(dataset(RAMP, bits=12))), RAMP / 4095, atol=1e-5)
        np.testing.assert_allclose(shown(encoded(dataset(RAMP, bits=16))), RAMP / 65535, atol=1e-5)
        assert decode_file(encoded(dataset(RAMP, bits=12))).bits == 12

    def test_monochrome1_is_inverted(self) -> None:
        data = encoded(dataset(RAMP, bits=12, PhotometricInterpretation="MONOCHROME1"))
        np.testing.assert_allclose(shown(data), 1 - RAMP / 4095, atol=1e-5)

    @pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
    def test_an_inverse_presentation(self, kind: str) -> None:
        data = encoded(dataset(RAMP, bits=12, PhotometricInterpretation=kind, PresentationLUTShape="INVERSE"))
        plain = encoded(dataset(RAMP, bits=12, PhotometricInterpretation="MONOCHROME1"))
        np.testing.assert_array_equal(decode_file(data).pixels, decode_file(plain).pixels)

    @pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
    @pytest.mark.parametrize(("tags", "low", "high"), [({}, 0, 0), ({"PixelPaddingRangeLimit": 9}, 0, 9)])
    def test_padding_is_black(self, kind: str, tags: dict[str, int], low: int, high: int) -> None:
        pixels = np.arange(400, dtype=np.uint16).reshape(20, 20)
        padded = encoded(dataset(pixels, bits=12, PhotometricInterpretation=kind, PixelPaddingValue=0, **tags))
        plain = decode_file(encoded(dataset(pixels, bits=12, PhotometricInterpretation=kind))).pixels
        inside = (pixels >= low) & (pixels <= high)
        np.testing.assert_array_equal(decode_file(padded).pixels, np.where(inside, 0, plain))

    def test_signed(self) -> None:
        values = RAMP.astype(np.int16) - 2048
        np.testing.assert_allclose(shown(encoded(dataset(values, bits=12))), RAMP / 4095, atol=1e-5)

    def test_values_beyond_the_stored_bits(self) -> None:
        # They would wrap around; where an overlay lies above the stored bits, it is not part of the value.
        high = RAMP | np.uint16(0x8000)
        assert reason(encoded(dataset(high, bits=12))) == "out_of_range"
        assert reason(encoded(dataset(RAMP, bits=12, HighBit=15))) == "unsupported"
        made = dataset(high, bits=12)
        made.add_new(0x60000102, "US", 15)
        np.testing.assert_allclose(shown(encoded(made)), RAMP / 4095, atol=1e-5)

    @pytest.mark.parametrize("extended", [True, False])
    def test_signed_values_with_and_without_their_sign_in_the_bits_above(self, extended: bool) -> None:
        values = RAMP.astype(np.int16) - 2048
        stored = values if extended else (values & 0x0FFF).astype(np.int16)
        np.testing.assert_allclose(shown(encoded(dataset(stored, bits=12))), RAMP / 4095, atol=1e-5)

    def test_signed_jpeg_ls(self) -> None:
        values = RAMP.astype(np.int16) - 2048
        frame = bytes(imagecodecs.jpegls_encode((values & 0x0FFF).astype(np.uint16)))
        made = dataset(values, bits=12, PixelData=encapsulate([frame]))
        made.file_meta.TransferSyntaxUID = uid.JPEGLSLossless
        made["PixelData"].is_undefined_length = True
        np.testing.assert_allclose(shown(encoded(made)), RAMP / 4095, atol=1e-5)

    def test_a_window(self) -> None:
        # PS3.3 C.11.2.1.2.1 with centre 2048, width 1024: black to (2047.5 - 511.5) = 1536, white from 2559 on
        data = encoded(dataset(RAMP, bits=12, WindowCenter=2048, WindowWidth=1024))
        expected = np.clip((RAMP - 2047.5) / 1023 + 0.5, 0, 1)
        np.testing.assert_allclose(shown(data), expected, atol=1e-5)

    def test_the_first_of_several_windows(self) -> None:
        several = encoded(dataset(RAMP, bits=12, WindowCenter=[2048, 100], WindowWidth=[1024, 5]))
        one = encoded(dataset(RAMP, bits=12, WindowCenter=2048, WindowWidth=1024))
        np.testing.assert_array_equal(decode_file(several).pixels, decode_file(one).pixels)

    @pytest.mark.parametrize(("function", "at_centre"), [("LINEAR_EXACT", 0.5), ("SIGMOID", 0.5)])
    def test_other_window_functions(self, function: str, at_centre: float) -> None:
        data = encoded(dataset(RAMP, bits=12, WindowCenter=2000, WindowWidth=1000, VOILUTFunction=function))
        values = shown(data)
        assert values[RAMP == 2000] == pytest.approx(at_centre, abs=1e-3)
        assert (np.diff(values.ravel()) >= 0).all()

    def test_rescale_comes_before_the_window(self) -> None:
        # Values of -1024 to 3071, of which -24 to 975 are shown.
        data = encoded(
            dataset(RAMP, bits=12, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=476, WindowWidth=1000)
        )
        expected = np.clip((RAMP - 1024.0 - 475.5) / 999 + 0.5, 0, 1)
        np.testing.assert_allclose(shown(data), expected, atol=1e-5)

    @pytest.mark.parametrize("window", [{}, {"WindowCenter": 2048, "WindowWidth": 4096}])
    def test_a_falling_rescale_inverts(self, window: dict[str, int]) -> None:
        data = encoded(dataset(RAMP, bits=12, RescaleSlope=-1, RescaleIntercept=4095, **window))
        np.testing.assert_allclose(shown(data), 1 - RAMP / 4095, atol=1e-5)

    @pytest.mark.parametrize("as_words", [True, False])
    def test_a_voi_lut_is_preferred_to_a_window(self, as_words: bool) -> None:
        table = (np.arange(4096) ** 2 // 4096 * 16).astype(np.uint16)
        item = Dataset()
        item.LUTDescriptor = [4096, 0, 16]
        item.add_new("LUTData", "OW" if as_words else "US", table.tobytes() if as_words else table.tolist())
        data = encoded(dataset(RAMP, bits=12, VOILUTSequence=[item], WindowCenter=1, WindowWidth=2))
        np.testing.assert_allclose(shown(data), table[RAMP] / 65535, atol=1e-5)

    def test_a_voi_lut_of_8_bits_for_12(self) -> None:
        table = (np.arange(4096) // 16).astype(np.uint16)
        item = Dataset()
        item.LUTDescriptor = [4096, 0, 8]
        item.add_new("LUTData", "US", table.tolist())
        np.testing.assert_allclose(
            shown(encoded(dataset(RAMP, bits=12, VOILUTSequence=[item]))), table[RAMP] / 255, atol=1e-5
        )

    def test_a_lut_clamps_what_lies_beside_it(self) -> None:
        item = Dataset()
        item.LUTDescriptor = [2, 100, 8]
        item.add_new("LUTData", "US", [10, 200])
        values = shown(encoded(dataset(RAMP, bits=12, ModalityLUTSequence=[item])))
        assert set(np.unique((values * 255).round())) == {10, 200}
        assert (values[RAMP <= 100] * 255).round().max() == 10

    def test_a_lut_that_is_shorter_than_it_says(self) -> None:
        item = Dataset()
        item.LUTDescriptor = [4096, 0, 16]
        item.add_new("LUTData", "US", [1, 2, 3])
        assert reason(encoded(dataset(RAMP, bits=12, VOILUTSequence=[item]))) == "unreadable"

    def test_depth_is_kept_until_the_size_is_reduced(self) -> None:
        # Four 12-bit values, each 0.47 steps of 8 bits: together 0.47 steps, and never four zeros.
        values = np.tile(np.array([[6, 8], [8, 10]], np.uint16), (32, 32))
        small = decode_image(
            encoded(dataset(values, bits=12, RescaleSlope=1, RescaleIntercept=0)), channels=1, longer_side=32
        )
        assert set(np.unique(small.pixels)) == {round(8 / 4095 * 255)}

    def test_colours(self) -> None:
        pixels = np.stack([RAMP >> 4, RAMP >> 5, RAMP >> 6], 2).astype(np.uint8)
        np.testing.assert_array_equal(decode_image(encoded(dataset(pixels)), channels=3).pixels, pixels)


class TestDamage:
    def test_a_baseline_frame_that_is_cut_but_has_its_end(self) -> None:
        frame = jpeg()
        cut = frame[: len(frame) // 2] + b"\xff\xd9"
        made = dataset(IMAGE, PixelData=encapsulate([cut]))
        made.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
        made["PixelData"].is_undefined_length = True
        assert reason(encoded(made)) == "unreadable"


class TestSpacing:
    def test_row_and_column(self) -> None:
        data = encoded(dataset(RAMP, bits=12, ImagerPixelSpacing=[0.2, 0.1]))
        assert decode_file(data).spacing == (0.2, 0.1)

    def test_calibrated_at_the_patient_comes_first(self) -> None:
        data = encoded(dataset(RAMP, bits=12, ImagerPixelSpacing=[0.2, 0.2], PixelSpacing=[0.15, 0.15]))
        assert decode_file(data).spacing == (0.15, 0.15)

    @pytest.mark.parametrize("wrong", [[0, 0.2], None, [1e9, 1]])
    def test_none(self, wrong: list[float] | None) -> None:
        assert decode_file(encoded(dataset(RAMP, bits=12, PixelSpacing=wrong))).spacing is None


class TestRealFiles:
    """pydicom's own files, and those of pydicom-data: the same image in several transfer syntaxes."""

    @pytest.mark.parametrize(
        ("compressed", "plain", "tolerance"),
        [
            ("MR_small_RLE.dcm", "MR_small.dcm", 0),
            ("MR_small_jp2klossless.dcm", "MR_small.dcm", 0),
            ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm", 0),
            ("MR_small_bigendian.dcm", "MR_small.dcm", 0),
            ("MR_small_implicit.dcm", "MR_small.dcm", 0),
            ("RG1_J2KR.dcm", "RG1_UNCR.dcm", 0),
            ("RG3_J2KR.dcm", "RG3_UNCR.dcm", 0),
            ("MR2_J2KR.dcm", "MR2_UNCR.dcm", 0),
            ("RG1_J2KI.dcm", "RG1_UNCI.dcm", 1),
            ("RG3_J2KI.dcm", "RG3_UNCI.dcm", 1),
        ],
    )
    def test_compression_changes_nothing(self, compressed: str, plain: str, tolerance: int) -> None:
        found, expected = (decode_image(real(name).read_bytes(), channels=1) for name in (compressed, plain))
        assert np.abs(found.pixels.astype(int) - expected.pixels).max() <= tolerance
        assert found.bits == expected.bits

    @pytest.mark.parametrize(
        ("name", "shape", "bits"),
        [
            ("JPGLosslessP14SV1_1s_1f_8b.dcm", (768, 1024), 8),  # JPEG lossless, first order
            ("JPEG-LL.dcm", (1024, 256), 16),  # the same, 16 bits, signed
            ("JPGExtended.dcm", (1024, 256), 12),  # JPEG extended
            ("SC_rgb_jpeg_gdcm.dcm", (100, 100), 8),  # JPEG lossless, RGB
            ("SC_rgb_jpeg_dcmtk.dcm", (100, 100), 8),  # JPEG baseline, YCbCr
            ("SC_rgb_rle_16bit.dcm", (100, 100), 16),
            ("vlut_04.dcm", (512, 512), 8),
            ("mlut_18.dcm", (512, 512), 12),
        ],
    )
    def test_other_syntaxes(self, name: str, shape: tuple[int, int], bits: int) -> None:
        found = decode_image(real(name).read_bytes(), channels=1)
        assert (found.pixels.shape[:2], found.bits) == (shape, bits)

    def test_baseline_colours_are_right(self) -> None:
        # Bars of colours and greys, 10 rows each, as in the uncompressed file.
        found, plain = (
            decode_image(real(name).read_bytes(), channels=3).pixels.astype(int)
            for name in ("SC_rgb_jpeg_dcmtk.dcm", "SC_rgb.dcm")
        )
        assert np.abs(found[5::10, 50] - plain[5::10, 50]).max() <= 5

    def test_a_chest_has_dark_lungs(self) -> None:
        # MONOCHROME1, 15 of 16 bits, a window: centre of either lung against the spine between them.
        found = decode_image(real("RG1_J2KR.dcm").read_bytes(), channels=1).pixels[:, :, 0] / 255
        assert found.shape == (1955, 1841)
        spine = found[600:700, 850:950].mean()
        assert found[600:700, 350:450].mean() < spine - 0.15
        assert found[600:700, 1250:1350].mean() < spine - 0.15

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("SC_rgb_2frame.dcm", "multi_frame"),
            ("color3d_jpeg_baseline.dcm", "multi_frame"),
            ("rtplan.dcm", "no_pixels"),
            ("test-SR.dcm", "no_pixels"),
            ("waveform_ecg.dcm", "no_pixels"),
            ("MR_truncated.dcm", "unreadable"),
            ("no_meta.dcm", "unreadable"),
            ("badVR.dcm", "unreadable"),
            ("rtdose_1frame.dcm", "unsupported"),
            ("SC_rgb_32bit.dcm", "unsupported"),
            ("OBXXXX1A.dcm", "unsupported"),
            ("image_dfl.dcm", "unsupported"),
        ],
    )
    def test_set_aside(self, name: str, expected: str) -> None:
        assert reason(real(name).read_bytes()) == expected

    def test_a_file_that_is_tiff_as_well(self) -> None:
        # Its preamble is the header of a TIFF file.
        data = real("CT_small.dcm").read_bytes()
        assert data.startswith(b"II*\0")
        assert decode_file(data).pixels.shape == (128, 128)

    def test_a_segmentation_as_a_mask(self) -> None:
        mask = decode_mask(real("liver_1frame.dcm").read_bytes(), mapped({0: 0, 1: 1}))
        assert mask.shape == (512, 512)
        assert 0 < mask.mean() < 0.5


class TestSetAside:
    @pytest.mark.parametrize(
        ("tags", "expected"),
        [
            ({"PhotometricInterpretation": "RGB"}, "unsupported"),
            ({"PhotometricInterpretation": "MONOCHROME3"}, "unsupported"),
            ({"PhotometricInterpretation": None}, "unsupported"),
            ({"NumberOfFrames": 3}, "multi_frame"),
            ({"PixelData": None}, "no_pixels"),
            ({"BurnedInAnnotation": "YES"}, "burned_in"),
            ({"Rows": 20000, "Columns": 20000}, "too_large"),
            ({"Rows": 65}, "unreadable"),
            ({"Rows": 32}, "unreadable"),
            ({"Rows": 0}, "unreadable"),
            ({"BitsStored": 17}, "unsupported"),
            ({"WindowCenter": 5, "WindowWidth": 9, "VOILUTFunction": "CUBIC"}, "unsupported"),
            ({"Rows": None}, "unreadable"),
            ({"WindowCenter": 5, "WindowWidth": 0}, "unreadable"),
            ({"RescaleSlope": "0", "RescaleIntercept": "0"}, "unreadable"),
        ],
    )
    def test_wrong_tags(self, tags: dict[str, Any], expected: str) -> None:
        assert reason(encoded(dataset(RAMP, bits=12, **tags))) == expected

    def test_a_frame_that_is_not_of_the_size_that_the_tags_say(self) -> None:
        found = pydicom.dcmread(real("MR_small_jp2klossless.dcm"))
        found.Rows = 32
        file = io.BytesIO()
        found.save_as(file)
        assert reason(file.getvalue()) == "unreadable"

    def test_a_frame_with_more_samples_than_the_tags_say(self) -> None:
        # What decodes it would reserve memory for each.
        stream = imagecodecs.jpeg2k_encode(np.stack([RAMP] * 3, 2), 0, codecformat="j2k", reversible=True)
        assert reason(compressed(stream, uid.JPEG2000Lossless)) == "unreadable"

    def test_a_frame_that_is_cut(self) -> None:
        for stream, syntax in (
            (imagecodecs.jpeg8_encode(RAMP, lossless=True, bitspersample=16, predictor=1), uid.JPEGLosslessSV1),
            (imagecodecs.jpeg8_encode(RAMP, 90, bitspersample=12), uid.JPEGExtended12Bit),
            (imagecodecs.jpegls_encode(RAMP), uid.JPEGLSLossless),
            (imagecodecs.jpeg2k_encode(RAMP, 0, codecformat="j2k", reversible=True), uid.JPEG2000Lossless),
        ):
            assert np.abs(shown(compressed(stream, syntax)) - RAMP / 4095).max() < 0.05
            assert reason(compressed(stream[: len(stream) * 3 // 4], syntax)) == "unreadable"

    def test_a_frame_of_endless_passes(self) -> None:
        stream = imagecodecs.jpeg8_encode(RAMP, 90, bitspersample=12)
        bomb = stream[:-2] + b"\xff\xda" * 200 + stream[-2:]
        assert reason(compressed(bomb, uid.JPEGExtended12Bit)) == "too_large"

    def test_frames_that_the_tags_do_not_count(self) -> None:
        found = pydicom.dcmread(real("SC_rgb_rle_2frame.dcm"))
        del found.NumberOfFrames
        assert reason(encoded(found)) == "multi_frame"

    def test_what_would_have_to_be_inflated_first(self) -> None:
        data = real("image_dfl.dcm").read_bytes()
        assert reason(data) == "unsupported"
        with pytest.raises(BadFileError, match="unsupported"):
            dicom.read_tags(io.BytesIO(data))

    def test_words_of_nested_errors_do_not_multiply(self) -> None:
        # The first tag is a sequence within a sequence, sixteen deep; in the last, a value of a kind that there is not.
        start = bytes.fromhex("0200 0000") + b"SQ" + bytes.fromhex("0000 ffffffff feff00e0 ffffffff")
        data = bytes(128) + b"DICM" + start * 16 + bytes.fromhex("0800 6000") + b"ZZ" + bytes.fromhex("0200 4d52")
        data += bytes.fromhex("feff0de0 00000000 feffdde0 00000000") * 16
        with pytest.raises(BadFileError) as caught:
            decode_image(data, channels=1)
        assert caught.value.reason == "unreadable"
        assert len(caught.value.detail) < 300

    def test_words_in_place_of_codes_are_not_repeated(self) -> None:
        with pytest.raises(BadFileError) as caught:
            decode_file(encoded(dataset(RAMP, bits=12, PhotometricInterpretation="PLANTEDNAME")))
        assert "PLANTED" not in str(caught.value)

    def test_no_exception_carries_what_the_file_says(self) -> None:
        # Values that pydicom quotes in its own words.
        for tags in ({"Rows": 7}, {"WindowCenter": "5", "WindowWidth": "0"}):
            with pytest.raises(BadFileError) as caught:
                decode_file(encoded(dataset(RAMP, bits=12, **tags)))
            assert caught.value.__cause__ is None
            assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_shape_of_a_frame() -> None:
    # Start of image, a comment of 3 bytes, a fill byte, start of frame (lossless): 12 bits, 5 rows, 7 columns
    head = bytes.fromhex("ffd8 fffe 0003 00 ff ffc3 000b 0c 0005 0007 01")
    assert frame_shape(head, uid.JPEGLosslessSV1) == (5, 7, 1)
    # JPEG 2000: columns and rows of the grid less their offsets
    siz = bytes.fromhex("ff4f ff51 0029 0000 00000064 00000032 00000004 00000002" + "00" * 16 + "0003")
    assert frame_shape(siz, uid.JPEG2000) == (48, 96, 3)
    for syntax in (uid.JPEG2000, uid.JPEGLSLossless):
        assert frame_shape(b"\xff\xd8\xff\xda", syntax) is None
        assert frame_shape(b"", syntax) is None


def test_tags() -> None:
    found = dicom.read_tags(io.BytesIO(chest(np.zeros((64, 64), np.uint8), IssuerOfPatientID="A")))
    assert found.patient == IDENTITY["PatientID"]
    assert found.study == IDENTITY["StudyInstanceUID"]
    assert found.groups == {"sex": "F", "view": "PA", "modality": "DX"}
    # What someone wrote by hand may name a person.
    free = dicom.read_tags(io.BytesIO(chest(np.zeros((64, 64), np.uint8), ViewPosition="LEE")))
    assert "view" not in free.groups
    with pytest.raises(BadFileError, match="unreadable"):
        dicom.read_tags(io.BytesIO(b"nothing of the kind"))
