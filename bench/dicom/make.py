"""Write DICOM files of all kinds that are read, and the pixels that pydicom reads from them.

    python bench/dicom/make.py testdata/dicom

index.json has the kind of each file. expected.zip has what its frames are compared
with: NAME.values are the stored values of a grey image as pydicom decodes them (int32,
little endian), NAME.grey the same within the window (uint16), and NAME.rgb the colours
(bytes), of the first frame; those of frame 2 are NAME#2.values and so on. tolerance is that of one stored or colour value; only lossy codecs have one.
"""
import io
import json
import math
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pydicom
from jpeg_ls import encode_buffer
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, apply_windowing
from pydicom.sequence import Sequence
from pydicom import uid

import frames

OUT = Path(sys.argv[1])
WIDTH, HEIGHT = 24, 18
PLANTED = {"PatientName": "Planted^Name", "PatientID": "PLANTED-ID", "InstitutionName": "Planted Institution", "PatientBirthDate": "19010203"}
index, expected = [], {}


def scene(low, high, width=None, height=None, frame=0):
    """Return smooth values with edges, noise and both extremes."""
    width, height = width or WIDTH, height or HEIGHT
    y, x = np.mgrid[0:height, 0:width]
    values = (np.sin(x / 5 + frame) + np.cos(y / 4) + 2) / 4
    values[4:9, 6:14] = 0.95 - 0.1 * frame
    values += np.random.default_rng(7 + frame).normal(0, 0.01, values.shape)
    values[10:14, 2:22] = 0.25  # flat, for runs
    out = np.clip(np.round(low + values * (high - low)), low, high).astype(np.int64)
    out[0, 0], out[-1, -1] = low, high
    return out


def colours(width=None, height=None):
    return np.stack([scene(0, 255, width, height, frame) for frame in range(3)], axis=2).astype(np.uint8)


def grey(values, allocated, stored, high=None, signed=False, photometric="MONOCHROME2", **attributes):
    high = stored - 1 if high is None else high
    raw = (values & ((1 << stored) - 1)) << (high + 1 - stored)
    data = raw.astype({8: "<u1", 16: "<u2"}[allocated]).tobytes()
    frames = values.shape[0] if values.ndim == 3 else 1
    ds = new(photometric, 1, values.shape[-1], values.shape[-2], allocated, stored, high, signed, data)
    if frames > 1:
        ds.NumberOfFrames = frames
    for name, value in attributes.items():
        setattr(ds, name, value)
    return ds


def colour(data, photometric, planar, width=None, height=None, bits=8):
    ds = new(photometric, 3, width or WIDTH, height or HEIGHT, bits, bits, bits - 1, False, data)
    ds.PlanarConfiguration = planar
    return ds


def new(photometric, samples, width, height, allocated, stored, high, signed, data):
    ds = FileDataset(None, {}, preamble=b"\0" * 128, file_meta=FileMetaDataset())
    ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = uid.SecondaryCaptureImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = "1.2.3"
    for name, value in PLANTED.items():
        setattr(ds, name, value)
    nested = Dataset()  # a sequence, with another image in it
    nested.Rows, nested.Columns, nested.PatientName = 1, 1, PLANTED["PatientName"]
    ds.ReferencedImageSequence = Sequence([nested])
    ds.SamplesPerPixel, ds.PhotometricInterpretation = samples, photometric
    ds.Rows, ds.Columns = height, width
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = allocated, stored, high, int(signed)
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OW" if allocated == 16 else "OB"
    return ds


def written(ds, syntax, words=False):
    """Return the bytes of a file in an uncompressed syntax."""
    ds.file_meta.TransferSyntaxUID = syntax
    if syntax == uid.ExplicitVRBigEndian:
        data = np.frombuffer(ds.PixelData, "<u2").byteswap().tobytes() if ds.BitsAllocated == 16 else ds.PixelData
        ds.PixelData = data
        if ds.BitsAllocated == 8 and not words:
            ds["PixelData"].VR = "OB"
    out = io.BytesIO()
    pydicom.dcmwrite(out, ds, implicit_vr=syntax == uid.ImplicitVRLittleEndian, little_endian=syntax != uid.ExplicitVRBigEndian, enforce_file_format=True)
    return out.getvalue()


def compressed(ds, syntax, **options):
    """Return the bytes of a file whose frames are compressed by pydicom."""
    ds.compress(syntax, generate_instance_uid=False, **options)
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


def by_gdcm(ds, process):
    """Return the bytes of a file that GDCM compresses by lossless JPEG."""
    source, target = OUT / "tmp.in", OUT / "tmp.out"
    source.write_bytes(written(ds, uid.ExplicitVRLittleEndian))
    subprocess.run([sys.executable, Path(__file__).with_name("lossless_jpeg.py"), source, target, process], check=True)
    made = pydicom.dcmread(target)  # GDCM adds attributes with the time
    source.unlink(), target.unlink()
    return with_stream(ds, made.file_meta.TransferSyntaxUID, *generate_frames(made.PixelData, number_of_frames=1))


def with_stream(ds, syntax, *frames, table=True):
    """Return the bytes of a file with encoded frames."""
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData = encapsulate(list(frames), has_bot=table)
    ds["PixelData"].VR = "OB"
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


def by_dcmtk(ds, predictor, transform=0):
    """Return the bytes of a file that DCMTK compresses by lossless JPEG with a predictor."""
    return with_stream(ds, *dcmtk_streams(ds, "+el", "+sv", str(predictor), "+pt", str(transform)))


def dcmtk_streams(ds, *options):
    """Return the transfer syntax and the frames that DCMTK's dcmcjpeg makes with options."""
    source, target = OUT / "tmp.in", OUT / "tmp.out"
    source.write_bytes(written(ds, uid.ExplicitVRLittleEndian))
    subprocess.run(["dcmcjpeg", *options, source, target], check=True)
    made = pydicom.dcmread(target)
    source.unlink(), target.unlink()
    frames = int(made.get("NumberOfFrames", 1))
    return made.file_meta.TransferSyntaxUID, *generate_frames(made.PixelData, number_of_frames=frames)


def by_openjpeg(image, *options):
    """Return the codestream that OpenJPEG's program makes with options."""
    source, target = OUT / "tmp.ppm", OUT / "tmp.j2k"
    height, width = image.shape[:2]
    largest = 255 if image.dtype == np.uint8 else 4095
    header = f"P{5 if image.ndim == 2 else 6}\n{width} {height}\n{largest}\n".encode()
    source.write_bytes(header + image.astype(">u2" if largest > 255 else "u1").tobytes())
    subprocess.run(["opj_compress", "-i", source, "-o", target, *options], check=True, stdout=subprocess.DEVNULL)
    data = target.read_bytes()
    source.unlink(), target.unlink()
    return data


def pillow(image, kind, **options):
    out = io.BytesIO()
    Image.fromarray(image).save(out, kind, **options)
    return out.getvalue()


def shown(ds, values):
    """Return grey values within the window or by the look-up table, from 0 to 65535."""
    if "ModalityLUTSequence" in ds:
        ends = 0, (1 << ds.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
        y = apply_modality_lut(values, ds).astype(np.float64)
    else:
        y, ends = rescaled(ds, values)
    if ds.get("VOILUTSequence"):
        part = apply_voi(np.floor(y + 0.5).astype(np.int64), ds) / ((1 << ds.VOILUTSequence[0].LUTDescriptor[2]) - 1)
    elif "WindowCenter" not in ds:
        part = (y - min(ends)) / (max(ends) - min(ends))
    else:
        # The window by its definition in the standard; pydicom's result is scaled twice, which
        # changes the last digits.
        part = window(ds, y)
        theirs = apply_windowing(y, ds)
        if "ModalityLUTSequence" not in ds:
            assert np.abs((theirs - ends[0]) / (ends[1] - ends[0]) - part).max() < 1e-9
    out = np.floor(np.clip(part, 0, 1) * 65535 + 0.5)
    return (65535 - out if ds.PhotometricInterpretation == "MONOCHROME1" else out).astype("<u2")


def rescaled(ds, values):
    """Return the rescaled values, and those of the first and last that the bits can have."""
    y = apply_modality_lut(values.astype(np.float64) if "RescaleSlope" in ds else values, ds).astype(np.float64)
    low, high = (-(1 << ds.BitsStored - 1), (1 << ds.BitsStored - 1) - 1) if ds.PixelRepresentation else (0, (1 << ds.BitsStored) - 1)
    slope, intercept = float(ds.get("RescaleSlope", 1)), float(ds.get("RescaleIntercept", 0))
    return y, (low * slope + intercept, high * slope + intercept)


def window(ds, y):
    first = lambda v: float(v[0] if isinstance(v, pydicom.multival.MultiValue) else v)
    centre, width = first(ds.WindowCenter), first(ds.WindowWidth)
    function = ds.get("VOILUTFunction", "LINEAR")
    if function == "SIGMOID":
        return np.array([1 / (1 + math.exp(-4 * (v - centre) / width)) for v in y.ravel()]).reshape(y.shape)
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    with np.errstate(all="ignore"):
        return np.where(y <= centre - width / 2, 0, np.where(y > centre + width / 2, 1, (y - centre) / width + 0.5))


def add(name, data, tolerance=0, reference=None, plugin="", decode=None):
    """Write a file and what pydicom reads from its frames. reference has the rescale and window of each frame."""
    (OUT / f"{name}.dcm").write_bytes(data)
    ds = pydicom.dcmread(io.BytesIO(decode or data), force=True)
    if plugin:
        ds.pixel_array_options(decoding_plugin=plugin)
    frames = int(ds.get("NumberOfFrames", 1))
    pixels = ds.pixel_array if frames > 1 else [ds.pixel_array]
    assert len(pixels) == frames
    item = {"file": f"{name}.dcm", "width": ds.Columns, "height": ds.Rows, "frames": frames, "tolerance": tolerance}
    for number, values in enumerate(pixels, 1):
        expect(name if number == 1 else f"{name}#{number}", ds, values, reference and reference[number - 1], item)
    index.append(item)
    print(name, frames, values.shape, values.dtype, values.min(), values.max())


def expect(name, ds, values, reference, item):
    """Add what a frame is compared with, and the kind of the file."""
    if ds.PhotometricInterpretation == "PALETTE COLOR":
        rgb = apply_color_lut(values, ds)
        rgb = (rgb >> 8 if rgb.dtype == np.uint16 and ds.RedPaletteColorLookupTableDescriptor[2] == 16 else rgb).astype(np.uint8)
        expected[f"{name}.rgb"] = rgb.tobytes()
        item["kind"] = "rgb"
    elif ds.SamplesPerPixel == 3:
        if values.dtype == np.uint16:
            values = (values >> ds.BitsStored - 8).astype(np.uint8)
        assert values.dtype == np.uint8
        expected[f"{name}.rgb"] = values.tobytes()
        item["kind"] = "rgb"
    else:
        expected[f"{name}.values"] = values.astype("<i4").tobytes()
        expected[f"{name}.grey"] = shown(reference if reference is not None else ds, values).tobytes()
        item["kind"] = "grey"


KINDS = {
    "mono2_8": lambda: grey(scene(0, 255), 8, 8),
    "mono1_8": lambda: grey(scene(0, 255), 8, 8, photometric="MONOCHROME1", WindowCenter=100, WindowWidth=120),
    "mono2_12": lambda: grey(scene(0, 4095), 16, 12, RescaleSlope=2, RescaleIntercept=-1024, WindowCenter=[1000, 40], WindowWidth=[3000, 400]),
    "mono2_16": lambda: grey(scene(0, 65535), 16, 16),
    "mono2_16s": lambda: grey(scene(-32768, 32767), 16, 16, signed=True, RescaleSlope="0.5", RescaleIntercept="-3.25"),
    "mono1_12s": lambda: grey(scene(-2048, 2047), 16, 12, signed=True, photometric="MONOCHROME1", WindowCenter="-40.5", WindowWidth="350"),
    "mono2_10": lambda: grey(scene(0, 1023), 16, 10),
    "rgb": lambda: colour(colours().tobytes(), "RGB", 0),
}


def uncompressed():
    for short, syntax in (("implicit", uid.ImplicitVRLittleEndian), ("explicit", uid.ExplicitVRLittleEndian), ("big", uid.ExplicitVRBigEndian), ("deflated", uid.DeflatedExplicitVRLittleEndian)):
        for kind, make in KINDS.items():
            add(f"{short}_{kind}", written(make(), syntax))
    wide = colours().astype("<u2") * 257
    add("explicit_rgb_16", written(colour(wide.tobytes(), "RGB", 0, bits=16), uid.ExplicitVRLittleEndian))
    for planar in 0, 1:
        data = colours().transpose(2, 0, 1) if planar else colours()
        add(f"explicit_ybr_full_planar{planar}", written(colour(data.tobytes(), "YBR_FULL", planar), uid.ExplicitVRLittleEndian))
    for function in "LINEAR_EXACT", "SIGMOID":
        add(f"explicit_{function.lower()}", written(grey(scene(0, 4095), 16, 12, WindowCenter=1800, WindowWidth=1500, VOILUTFunction=function), uid.ExplicitVRLittleEndian))
    add("explicit_slope_negative", written(grey(scene(0, 4095), 16, 12, RescaleSlope=-1, RescaleIntercept=100), uid.ExplicitVRLittleEndian))
    add("explicit_window_1", written(grey(scene(0, 255), 8, 8, WindowCenter=100, WindowWidth=1), uid.ExplicitVRLittleEndian))
    frames = np.stack([scene(0, 4095, frame=frame) for frame in range(3)])
    add("explicit_frames", written(grey(frames, 16, 12), uid.ExplicitVRLittleEndian))
    enhanced()
    matrix()
    whole = written(KINDS["mono2_12"](), uid.ExplicitVRLittleEndian)
    add("no_preamble", whole[132:], decode=whole)
    plain = written(KINDS["mono2_12"](), uid.ImplicitVRLittleEndian)
    at = plain.index(b"\x08\x00\x16\x00")  # the first element after the meta information
    add("no_meta", plain[at:], decode=plain)
    explicit_at = whole.index(b"\x08\x00\x16\x00UI")
    add("no_meta_explicit", whole[explicit_at:], decode=whole)


def palette(bits):
    ds = grey(scene(0, 255), 8, 8, photometric="PALETTE COLOR")
    entries, first = 200, 20
    for i, name in enumerate(("Red", "Green", "Blue")):
        values = (np.arange(entries) * (3 + i) * (256 if bits == 16 else 1)) % (1 << bits)
        setattr(ds, f"{name}PaletteColorLookupTableDescriptor", [entries, first, bits])
        setattr(ds, f"{name}PaletteColorLookupTableData", values.astype("<u2" if bits == 16 else "u1").tobytes())
    return ds


def enhanced():
    """A file of frames with their own windows, as enhanced CT and MR have them."""
    frames = np.stack([scene(0, 4095, frame=frame) for frame in range(2)])
    ds = grey(frames, 16, 12)
    shared, per_frame = Dataset(), []
    transform = Dataset()
    transform.RescaleSlope, transform.RescaleIntercept, transform.RescaleType = 1, -1000, "HU"
    shared.PixelValueTransformationSequence = Sequence([transform])
    for centre in 500, 1500:
        voi, item = Dataset(), Dataset()
        voi.WindowCenter, voi.WindowWidth = centre, 800
        item.FrameVOILUTSequence = Sequence([voi])
        per_frame.append(item)
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    ds.PerFrameFunctionalGroupsSequence = Sequence(per_frame)
    flat = [grey(frames, 16, 12, RescaleSlope=1, RescaleIntercept=-1000, WindowCenter=centre, WindowWidth=800) for centre in (500, 1500)]
    for syntax, short in ((uid.ExplicitVRLittleEndian, "explicit"), (uid.ImplicitVRLittleEndian, "implicit")):
        add(f"{short}_enhanced", written(ds, syntax), reference=flat)


def one_bit():
    values = (scene(0, 255) > 120).astype(np.uint8)
    data = np.packbits(values.ravel(), bitorder="little").tobytes()
    return new("MONOCHROME2", 1, WIDTH, HEIGHT, 1, 1, 0, False, data)


def half_chroma():
    c = colours()
    half = np.stack([c[:, 0::2, 0], c[:, 1::2, 0], c[:, 0::2, 1], c[:, 0::2, 2]], axis=2)
    return colour(half.tobytes(), "YBR_FULL_422", 0)


def matrix():
    """The kinds that not every function above writes in every uncompressed syntax."""
    for short, syntax in (("implicit", uid.ImplicitVRLittleEndian), ("explicit", uid.ExplicitVRLittleEndian), ("big", uid.ExplicitVRBigEndian), ("deflated", uid.DeflatedExplicitVRLittleEndian)):
        add(f"{short}_1bit", written(one_bit(), syntax))
        add(f"{short}_ybr_full", written(colour(colours().tobytes(), "YBR_FULL", 0), syntax))
        add(f"{short}_ybr_half", written(half_chroma(), syntax))
        add(f"{short}_rgb_planar", written(colour(colours().transpose(2, 0, 1).tobytes(), "RGB", 1), syntax))
        if syntax != uid.ExplicitVRBigEndian:  # pydicom takes the palette's entries for little endian
            for bits in 8, 16:
                add(f"{short}_palette_{bits}", written(palette(bits), syntax))
    global WIDTH, HEIGHT
    size, (WIDTH, HEIGHT) = (WIDTH, HEIGHT), (7, 5)
    for kind, make in (("grey", KINDS["mono2_8"]), ("rgb", KINDS["rgb"])):  # an odd number of bytes, in words
        ds = make()
        ds.PixelData = np.frombuffer(ds.PixelData, "<u2").byteswap().tobytes()
        ds["PixelData"].VR = "OW"
        add(f"big_words_{kind}", written(ds, uid.ExplicitVRBigEndian, words=True))
    WIDTH, HEIGHT = size
    for kind, make in (("mono2_12", KINDS["mono2_12"]), ("rgb", KINDS["rgb"])):
        ds = make()
        add(f"encapsulated_{kind}", with_stream(ds, uid.UID("1.2.840.10008.1.2.1.98"), ds.PixelData), decode=written(make(), uid.ExplicitVRLittleEndian))


def compressed_matrix():
    """Palettes, YBR_FULL and deep colours in the compressed syntaxes."""
    wide = colours().astype("<u2") * 257
    kinds = {
        "palette_16": lambda: palette(16),
        "ybr_full": lambda: colour(colours().tobytes(), "YBR_FULL", 0),
        "rgb_16": lambda: colour(wide.tobytes(), "RGB", 0, bits=16),
        "rgb_planar": lambda: colour(colours().transpose(2, 0, 1).tobytes(), "RGB", 1),
    }
    for kind, make in kinds.items():
        add(f"rle_{kind}", compressed(make(), uid.RLELossless))
        if kind != "rgb_planar":
            add(f"jpegls_{kind}", compressed(make(), uid.JPEGLSLossless))
            add(f"jpeg2000_{kind}", compressed(make(), uid.JPEG2000Lossless))
    for bits in 2, 4, 6, 7:
        make = lambda: grey(scene(0, (1 << bits) - 1), 8, bits)
        add(f"rle_mono2_{bits}", compressed(make(), uid.RLELossless))
        add(f"jpegls_mono2_{bits}", compressed(make(), uid.JPEGLSLossless))
        add(f"jpegls_near_mono2_{bits}", compressed(make(), uid.JPEGLSNearLossless, jls_error=1))
        add(f"jpeg2000_mono2_{bits}", compressed(make(), uid.JPEG2000Lossless))
    # GDCM fails for these kinds: its stream of a plain image is used.
    plain = {"palette_16": grey(scene(0, 255), 8, 8), "ybr_full": colour(colours().tobytes(), "RGB", 0)}
    for kind, ds in plain.items():
        made = pydicom.dcmread(io.BytesIO(by_gdcm(ds, "SV1")))
        stream = next(generate_frames(made.PixelData, number_of_frames=1))
        add(f"jpeg_lossless_{kind}", with_stream(kinds[kind](), uid.JPEGLosslessSV1, stream))
        if kind == "ybr_full":  # the components are named R, G and B, which counts
            at = stream.index(b"\xff\xc3")
            renamed = stream[:at] + stream[at:].replace(b"\x03R\x11\0G\x11\0B\x11\0", b"\x03\1\x11\0\2\x11\0\3\x11\0", 1).replace(b"\xff\xda\0\x0c\x03R\0G\0B\0", b"\xff\xda\0\x0c\x03\1\0\2\0\3\0", 1)
            assert renamed.count(b"R\x11") == 0 and renamed != stream
            add("jpeg_lossless_ybr_full_renamed", with_stream(kinds[kind](), uid.JPEGLosslessSV1, renamed))


def encapsulated():
    for kind, make in KINDS.items():
        add(f"rle_{kind}", compressed(make(), uid.RLELossless))
    add("rle_palette_8", compressed(palette(8), uid.RLELossless))
    frames = np.stack([scene(0, 4095, frame=frame) for frame in range(3)])
    add("rle_frames", compressed(grey(frames, 16, 12), uid.RLELossless))
    for kind in "mono2_8", "mono1_8", "mono2_12", "mono2_16", "mono2_16s", "mono1_12s", "rgb":
        for name, process in (("lossless_sv1", "SV1"), ("lossless_14", "14")):
            add(f"jpeg_{name}_{kind}", by_gdcm(KINDS[kind](), process))
    for kind in "mono2_8", "mono1_8", "mono2_12", "mono2_16", "mono2_10", "rgb":
        add(f"jpegls_{kind}", compressed(KINDS[kind](), uid.JPEGLSLossless))
        add(f"jpegls_near_{kind}", compressed(KINDS[kind](), uid.JPEGLSNearLossless, jls_error=3))
    for kind in "mono1_12s", "mono2_16s":
        add(f"jpegls_{kind}", compressed(KINDS[kind](), uid.JPEGLSLossless))
    global WIDTH, HEIGHT
    WIDTH, HEIGHT = 41, 37  # the encoder refuses smaller ones
    for kind in KINDS:
        add(f"jpeg2000_{kind}", compressed(KINDS[kind](), uid.JPEG2000Lossless))
        add(f"jpeg2000_lossy_{kind}", compressed(KINDS[kind](), uid.JPEG2000, j2k_cr=[3]), tolerance=2)
    frames = np.stack([scene(0, 255, frame=frame) for frame in range(3)])
    add("jpeg2000_frames", compressed(grey(frames, 8, 8), uid.JPEG2000Lossless))
    WIDTH, HEIGHT = 29, 23
    for predictor in range(1, 8):
        for kind in "mono2_12", "rgb":
            add(f"jpeg_lossless_p{predictor}_{kind}", by_dcmtk(KINDS[kind](), predictor))
    add("jpeg_lossless_transform", by_dcmtk(KINDS["mono2_12"](), 4, 2))
    for mode, order in enumerate(((2, 0, 1), (0, 2, 1), (0, 1, 2))):
        for error in 0, 2:
            stream = bytes(encode_buffer(colours().transpose(order).tobytes(), HEIGHT, WIDTH, 3, 8, lossy_error=error, interleave_mode=mode))
            add(f"jpegls_interleave{mode}_{error}", with_stream(colour(colours().tobytes(), "RGB", 0), uid.JPEGLSNearLossless, stream))
    WIDTH, HEIGHT = 40, 36
    compressed_matrix()
    streams()
    modes()


def modes():
    """Codestreams with the modes of block coding."""
    deep, c = scene(0, 4095, 70, 45).astype(np.uint16), colours(70, 45)
    kinds = {"bypass": ["-M", "1"], "reset": ["-M", "2"], "terminate": ["-M", "4"], "causal": ["-M", "8"], "symbols": ["-M", "32"],
             "all": ["-M", "63"], "bypass_terminate": ["-M", "5"], "markers": ["-SOP", "-EPH"], "offset": ["-d", "13,7", "-T", "5,3", "-t", "32,24", "-n", "4"],
             "parts": ["-TP", "R", "-r", "20,5,1"], "lossy": ["-I", "-r", "4"], "lossy_bypass": ["-I", "-M", "1", "-r", "3"], "no_transform": ["-mct", "0"],
             "big_blocks": ["-b", "4,1024"]}
    for name, options in kinds.items():
        lossy = 2 if "-I" in options else 0
        stream = by_openjpeg(deep, *[o for o in options if name != "no_transform"])
        add(f"jpeg2000_mode_{name}_grey", with_stream(grey(deep.astype(int), 16, 12), uid.JPEG2000, stream), tolerance=lossy)
        stream = by_openjpeg(c, *options)
        photometric = "RGB" if name == "no_transform" else "YBR_ICT" if lossy else "YBR_RCT"
        add(f"jpeg2000_mode_{name}_rgb", with_stream(colour(c.tobytes(), photometric, 0, 70, 45), uid.JPEG2000, stream), tolerance=lossy)


def streams():
    """Codestreams of other programs and with other options."""
    c, g = colours(61, 43), scene(0, 255, 61, 43).astype(np.uint8)
    options = {
        "tiles": dict(irreversible=False, tile_size=(24, 20), tile_offset=(0, 0)),
        "tiles_lossy": dict(irreversible=True, tile_size=(24, 20)),
        "blocks": dict(irreversible=False, codeblock_size=(8, 4)),
        "precincts": dict(irreversible=False, num_resolutions=4, precinct_size=(32, 32), codeblock_size=(8, 8)),
        "layers": dict(irreversible=False, quality_mode="rates", quality_layers=[40, 20, 10, 1]),
    }
    for order in "LRCP", "RLCP", "RPCL", "PCRL", "CPRL":
        options[order.lower()] = dict(irreversible=False, progression=order, num_resolutions=3, precinct_size=(16, 16), codeblock_size=(8, 8), quality_mode="rates", quality_layers=[20, 1])
    for levels in 1, 2, 6:
        options[f"levels{levels}"] = dict(irreversible=False, num_resolutions=levels)
    for name, o in options.items():
        lossy = 2 if o["irreversible"] else 0
        stream = pillow(g, "JPEG2000", no_jp2=True, **o)
        add(f"jpeg2000_{name}_grey", with_stream(grey(g.astype(int), 8, 8), uid.JPEG2000, stream), tolerance=lossy)
        stream = pillow(c, "JPEG2000", no_jp2=True, mct=1, **o)
        add(f"jpeg2000_{name}_rgb", with_stream(colour(c.tobytes(), "YBR_ICT" if lossy else "YBR_RCT", 0, 61, 43), uid.JPEG2000, stream), tolerance=lossy)
    smooth = np.asarray(Image.fromarray(c).resize((64, 48), Image.Resampling.BICUBIC))
    baseline = pillow(smooth, "JPEG", quality=92, subsampling=0)
    for short, syntax, sof in (("baseline", uid.JPEGBaseline8Bit, 0xC0), ("extended", uid.JPEGExtended12Bit, 0xC1)):
        stream = pillow(smooth[:, :, 0], "JPEG", quality=92).replace(b"\xff\xc0", bytes([0xFF, sof]), 1)
        for photometric in "MONOCHROME1", "MONOCHROME2":
            ds = grey(smooth[:, :, 0].astype(int), 8, 8, photometric=photometric)
            add(f"jpeg_{short}_{photometric.lower()}", with_stream(ds, syntax, stream), tolerance=2)
        stream = baseline.replace(b"\xff\xc0", bytes([0xFF, sof]), 1)
        add(f"jpeg_{short}_ybr_full", with_stream(colour(smooth.tobytes(), "YBR_FULL", 0, 64, 48), syntax, stream), tolerance=2)
    subsampled = pillow(smooth, "JPEG", quality=95, subsampling=1)
    add("jpeg_baseline_ybr_full_422", with_stream(colour(smooth.tobytes(), "YBR_FULL_422", 0, 64, 48), uid.JPEGBaseline8Bit, subsampled), tolerance=2, plugin="pillow")
    add("jpeg_baseline_jfif", with_stream(colour(smooth.tobytes(), "RGB", 0, 64, 48), uid.JPEGBaseline8Bit, baseline), tolerance=2)
    kept = pillow(smooth, "JPEG", quality=92, subsampling=0, keep_rgb=True)
    add("jpeg_baseline_rgb", with_stream(colour(smooth.tobytes(), "RGB", 0, 64, 48), uid.JPEGBaseline8Bit, kept), tolerance=2)
    halves = [baseline[: len(baseline) // 4 * 2], baseline[len(baseline) // 4 * 2:]]
    ds = colour(smooth.tobytes(), "YBR_FULL", 0, 64, 48)
    add("jpeg_baseline_fragments", with_stream(ds, uid.JPEGBaseline8Bit, b"".join(halves)), tolerance=2)


OUT.mkdir(parents=True, exist_ok=True)
for old in OUT.iterdir():
    if old.suffix == ".dcm":
        old.unlink()
uncompressed()
encapsulated()
WIDTH, HEIGHT = 24, 18
this = sys.modules[__name__]
frames.tables(this)
frames.several_frames(this)
frames.twelve_bits(this)
WIDTH, HEIGHT = 40, 36
frames.full_chroma(this)
with zipfile.ZipFile(OUT / "expected.zip", "w", zipfile.ZIP_DEFLATED) as z:
    for name, content in expected.items():
        z.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
(OUT / "index.json").write_text(json.dumps(index, indent=1) + "\n")
