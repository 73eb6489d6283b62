"""The files of make.py with look-up tables, several frames, and JPEG of 12 bits.

The functions get the module make with its helpers.
"""
import io
import subprocess

import numpy as np
import pydicom
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.sequence import Sequence


def tables(m):
    """Files with look-up tables."""
    ramp = lambda count, bits, start=0.0: np.clip(((np.linspace(start, 1, count) ** 1.7) * ((1 << bits) - 1)).round(), 0, (1 << bits) - 1).astype(int)

    def table(entries, first, bits, signed=False, vr="US"):
        item = Dataset()
        item.add_new("LUTDescriptor", "SS" if signed else "US", [len(entries) % 65536, first, bits])
        item.add_new("LUTData", vr, np.array(entries, "<u2").tobytes() if vr == "OW" else [int(e) for e in entries])
        return Sequence([item])

    plain, signed = lambda **a: m.grey(m.scene(0, 4095), 16, 12, **a), lambda **a: m.grey(m.scene(-2048, 2047), 16, 12, signed=True, **a)
    kinds = {
        "modality": plain(ModalityLUTSequence=table(ramp(3000, 16), 300, 16)),
        "modality_signed": signed(ModalityLUTSequence=table(ramp(3000, 16, 0.1), -1500, 16, signed=True)),
        "modality_8": plain(ModalityLUTSequence=table(ramp(4096, 8), 0, 8)),
        "modality_window": plain(ModalityLUTSequence=table(ramp(4096, 16), 0, 16), WindowCenter=20000, WindowWidth=30000),
        "modality_voi": plain(ModalityLUTSequence=table(ramp(4096, 16), 0, 16), VOILUTSequence=table(ramp(40000, 12), 9000, 12, vr="OW")),
        "voi": plain(VOILUTSequence=table(ramp(3000, 12), 500, 12)),
        "voi_words": plain(VOILUTSequence=table(ramp(3000, 14), 500, 14, vr="OW")),
        # pydicom takes the index of a table of 8 bits modulo 256.
        "voi_8": m.grey(m.scene(0, 255), 8, 8, VOILUTSequence=table(ramp(200, 8), 20, 8)),
        "voi_first": plain(VOILUTSequence=table(ramp(4096, 16), 0, 16), WindowCenter=1000, WindowWidth=100),
        "voi_rescaled": plain(RescaleSlope="0.5", RescaleIntercept=-1024, VOILUTSequence=table(ramp(2048, 12), -1024, 12, signed=True)),
        "voi_mono1": m.grey(m.scene(0, 255), 8, 8, photometric="MONOCHROME1", VOILUTSequence=table(255 - ramp(256, 8), 0, 8)),
        "voi_all": m.grey(m.scene(0, 65535), 16, 16, VOILUTSequence=table(ramp(65536, 10), 0, 10, vr="OW")),
    }
    for kind, ds in kinds.items():
        m.add(f"explicit_lut_{kind}", m.written(ds, uid.ExplicitVRLittleEndian))
    for kind, ds in (("modality", kinds["modality"]), ("voi", kinds["voi"]), ("voi_first", kinds["voi_first"])):
        m.add(f"implicit_lut_{kind}", m.written(ds, uid.ImplicitVRLittleEndian))
        if kind != "voi_first":
            m.add(f"big_lut_{kind}", m.written(ds, uid.ExplicitVRBigEndian))
    # Each frame has a table or a window of its own, before which the file's table is ignored.
    frames = np.stack([m.scene(0, 4095, frame=frame) for frame in range(3)])
    ds, groups = m.grey(frames, 16, 12, VOILUTSequence=kinds["voi_words"].VOILUTSequence), []
    voi, window_, nothing = Dataset(), Dataset(), Dataset()
    voi.VOILUTSequence = table(ramp(4096, 12, 0.2), 0, 12)
    window_.WindowCenter, window_.WindowWidth = 1500, 900
    for content in voi, window_:
        item = Dataset()
        item.FrameVOILUTSequence = Sequence([content])
        groups.append(item)
    ds.PerFrameFunctionalGroupsSequence = Sequence([*groups, nothing])
    flat = [plain(VOILUTSequence=voi.VOILUTSequence), plain(WindowCenter=1500, WindowWidth=900), plain(VOILUTSequence=ds.VOILUTSequence)]
    m.add("explicit_lut_frames", m.written(ds, uid.ExplicitVRLittleEndian), reference=flat)


def several_frames(m):
    """Files of several frames, in the ways that frames are found."""
    size, (m.WIDTH, m.HEIGHT) = (m.WIDTH, m.HEIGHT), (7, 5)
    odd = np.stack([m.scene(0, 255, 24, 18, frame)[4:9, 3:10] for frame in range(3)])
    for short, syntax in (("implicit", uid.ImplicitVRLittleEndian), ("explicit", uid.ExplicitVRLittleEndian), ("big", uid.ExplicitVRBigEndian), ("deflated", uid.DeflatedExplicitVRLittleEndian)):
        m.add(f"{short}_odd_frames", m.written(m.grey(odd, 8, 8), syntax))
    frame, y, x = np.indices((3, 5, 7))
    bits = np.packbits(((5 * frame + 3 * y + x * x) % 4 < 2).astype(np.uint8).ravel(), bitorder="little").tobytes()
    ds = m.new("MONOCHROME2", 1, 7, 5, 1, 1, 0, False, bits)
    ds.NumberOfFrames = 3
    m.add("explicit_1bit_frames", m.written(ds, uid.ExplicitVRLittleEndian))
    m.WIDTH, m.HEIGHT = size
    for planar in 0, 1:
        c = np.stack([np.roll(m.colours(), frame, axis=1) for frame in range(3)])
        ds = m.colour((c.transpose(0, 3, 1, 2) if planar else c).tobytes(), "RGB", planar)
        ds.NumberOfFrames = 3
        m.add(f"explicit_rgb_frames_planar{planar}", m.written(ds, uid.ExplicitVRLittleEndian))
    m.add("explicit_big_words_frames", m.written(m.grey(np.stack([m.scene(0, 65535, frame=frame) for frame in range(2)]), 16, 16), uid.ExplicitVRBigEndian))

    deep = np.stack([m.scene(0, 4095, 41, 37, frame) for frame in range(4)])
    make = lambda: m.grey(deep, 16, 12)
    for short, syntax in (("jpegls", uid.JPEGLSLossless), ("jpeg2000", uid.JPEG2000Lossless), ("rle", uid.RLELossless)):
        made = pydicom.dcmread(io.BytesIO(m.compressed(make(), syntax)))
        streams_ = [s + b"\0" * (len(s) % 2) for s in generate_frames(made.PixelData, number_of_frames=4)]
        ds = make()
        ds.file_meta.TransferSyntaxUID = syntax
        ds.PixelData, ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = encapsulate_extended(streams_)
        ds["PixelData"].VR = "OB"
        out = io.BytesIO()
        ds.save_as(out, enforce_file_format=True)
        m.add(f"{short}_frames_extended", out.getvalue())
        m.add(f"{short}_frames_no_table", m.with_stream(make(), syntax, *streams_, table=False))
        if short != "rle":  # a frame must be one fragment
            ds = make()
            ds.file_meta.TransferSyntaxUID = syntax
            ds.PixelData = encapsulate(streams_, fragments_per_frame=3)
            ds["PixelData"].VR = "OB"
            out = io.BytesIO()
            ds.save_as(out, enforce_file_format=True)
            m.add(f"{short}_frames_fragments", out.getvalue())
            table = out.getvalue().index(b"\xfe\xff\x00\xe0\x10\x00\x00\x00")
            without = out.getvalue()[:table + 4] + b"\0\0\0\0" + out.getvalue()[table + 24:]
            m.add(f"{short}_frames_fragments_no_table", without, decode=out.getvalue())
    syntax, *lossless = m.dcmtk_streams(make(), "+el", "+sv", "1")
    m.add("jpeg_lossless_frames", m.with_stream(make(), syntax, *lossless))
    small = [np.asarray(Image.fromarray(m.scene(0, 255, 24, 18, frame).astype(np.uint8)).resize((64, 48), Image.Resampling.BICUBIC)) for frame in range(3)]
    ds = m.grey(np.stack(small).astype(int), 8, 8)
    m.add("jpeg_baseline_frames", m.with_stream(ds, uid.JPEGBaseline8Bit, *[m.pillow(s, "JPEG", quality=92) for s in small]), tolerance=2)


def twelve_bits(m):
    """JPEG of 12 bits, by DCMTK.

    NAME.dcmtk in expected.zip are the values of all frames as DCMTK decodes them, from which
    pylibjpeg's differ by up to 3.
    """
    y, x = np.mgrid[0:53, 0:70]
    smooth = (2048 + 1400 * np.sin(x / 9) * np.cos(y / 7) + 300 * np.sin(x / 2)).round().astype(int)
    smooth[20:30, 30:44] = 4000  # edges beyond the range after quantization
    smooth[34:44, 8:20] = 5

    def add(name, data):
        m.add(name, data, tolerance=3, plugin="pylibjpeg")
        target = m.OUT / "tmp.out"
        subprocess.run(["dcmdjpeg", m.OUT / f"{name}.dcm", target], check=True)
        m.expected[f"{name}.dcmtk"] = pydicom.dcmread(target).pixel_array.astype("<i4").tobytes()
        target.unlink()

    makers = {
        "mono2": lambda: m.grey(smooth, 16, 12),
        "mono1": lambda: m.grey(smooth, 16, 12, photometric="MONOCHROME1", WindowCenter=1800, WindowWidth=3000),
        "rescaled": lambda: m.grey(smooth, 16, 12, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=700, WindowWidth=2600),
        "frames": lambda: m.grey(np.stack([smooth, smooth[::-1], 4095 - smooth]), 16, 12),
    }
    for kind, make in makers.items():
        for quality in (30, 90, 100) if kind == "mono2" else (90,):
            syntax, *frames = m.dcmtk_streams(make(), "+ee", "+bt", "+q", str(quality), "+sr")
            add(f"jpeg_12_{kind}_{quality}", m.with_stream(make(), syntax, *frames))
    for width, height in (8, 8), (9, 17), (1, 1), (16, 7):
        part = smooth[:height, :width] if width > 1 else smooth[25:26, 35:36]
        syntax, stream = m.dcmtk_streams(m.grey(part, 16, 12), "+ee", "+bt", "+sr")
        add(f"jpeg_12_size_{width}x{height}", m.with_stream(m.grey(part, 16, 12), syntax, stream))
    colours = np.stack([(2048 + 1500 * np.sin(x / (9 + i)) * np.cos(y / 7)).round() for i in range(3)], axis=2).astype("<u2")
    ds = m.new("RGB", 3, 70, 53, 16, 12, 11, False, colours.tobytes())
    ds.PlanarConfiguration = 0
    syntax, stream = m.dcmtk_streams(ds, "+ee", "+bt", "+cr", "+sr")
    add("jpeg_12_rgb", m.with_stream(ds, syntax, stream))


def full_chroma(m):
    """Lossless files that state YBR_FULL_422 and have all chroma, which the codecs cannot halve."""
    for name, syntax in (("rle", uid.RLELossless), ("jpegls", uid.JPEGLSLossless), ("jpeg2000", uid.JPEG2000Lossless)):
        made = pydicom.dcmread(io.BytesIO(m.compressed(m.colour(m.colours().tobytes(), "YBR_FULL", 0), syntax)))
        stream = next(generate_frames(made.PixelData, number_of_frames=1))
        m.add(f"{name}_ybr_full_422", m.with_stream(m.colour(b"", "YBR_FULL_422", 0), syntax, stream))
