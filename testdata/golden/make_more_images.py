"""Makes the image goldens that Pillow cannot write: variants of BMP, TIFF, JPEG and PNG,
and images with an orientation in EXIF or XMP.

Run from the repository's root, after make_images.py, which empties the folder:

    python testdata/golden/make_more_images.py

Made with Pillow 13.0.0 and NumPy 2.4.6. It writes inputs and expectations as
make_images.py does. In internal/imagefile/testdata/cases, it writes Pillow's result of
16×16 pixels for each image of a user that Pillow reads, upright. The expectation of an input whose name begins with "upright_" is
that of ImageOps.exif_transpose(Image.open(<name>)).convert("RGB").
"""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from make_images import EXPECTED, HERE, encoded, png_chunk, scene, write

CASES = Path(__file__).parents[2] / "internal" / "imagefile" / "testdata" / "cases"

names = []
# What inputs that Pillow does not read are made from.
pixels = {}


def put(name, data, of=None):
    write(name, bytes(data))
    names.append(name)
    if of is not None:
        pixels[name] = of


# --- BMP ---


def bmp(w, h, bits, rows, compression=0, masks=b"", palette=b"", header=40, gap=b"", reserved=0, colours=0, size=None):
    """rows are in the file's order and without padding, or the encoded bytes."""
    if header == 12:
        info = struct.pack("<IHHHH", 12, w, h, 1, bits)
    else:
        info = struct.pack("<IiiHHIIiiII", 40, w, h, 1, bits, compression, 0, 2835, 2835, colours, 0)
        info = struct.pack("<I", header) + info[4:]
        info += masks.ljust(header - 40, b"\0") if header > 40 else masks
    body = rows if isinstance(rows, bytes) else b"".join(bytes(r) + b"\0" * (-len(bytes(r)) % 4) for r in rows)
    offset = 14 + len(info) + len(palette) + len(gap)
    return struct.pack("<2sIII", b"BM", offset + len(body), reserved, offset) + info + palette + gap + body


def pack16(a, shifts, bits):
    v = sum((a[:, :, i].astype(np.uint32) >> (8 - bits[i])) << shifts[i] for i in range(3))
    return [r.astype("<u2").tobytes() for r in v[::-1]]


def pack32(a, shifts):
    v = sum(a[:, :, i].astype(np.uint32) << shifts[i] for i in range(3))
    return [r.astype("<u4").tobytes() for r in v[::-1]]


def rle(indexes, w, four=False):
    """Runs and literal pixels by turns, an end of each line, and an end mark."""
    out = bytearray()
    for row in indexes[::-1]:
        x = 0
        while x < w:
            n = 1
            while x + n < w and n < 40 and row[x + n] == row[x]:
                n += 1
            if n > 2 or w - x < 3:
                out += bytes([n, row[x] * 17 if four else row[x]])
            else:
                n = min(7, w - x)
                literal = [int(v) for v in row[x : x + n]]
                if four:
                    literal = [literal[i] << 4 | (literal[i + 1] if i + 1 < n else 0) for i in range(0, n, 2)]
                out += bytes([0, n, *literal]) + b"\0" * (len(literal) % 2)
            x += n
        out += b"\0\0"
    return bytes(out + b"\0\1")


def make_bmp():
    a = scene(21, 13, 20)
    h, w, _ = a.shape
    m = struct.pack
    put("bmp_565.bmp", bmp(w, h, 16, pack16(a, (11, 5, 0), (5, 6, 5)), 3, m("<III", 0xF800, 0x7E0, 0x1F)))
    put("bmp_555.bmp", bmp(w, h, 16, pack16(a, (10, 5, 0), (5, 5, 5))))
    put("bmp_555_masks.bmp", bmp(w, h, 16, pack16(a, (10, 5, 0), (5, 5, 5)), 3, m("<III", 0x7C00, 0x3E0, 0x1F)))
    put("bmp_32_masks.bmp", bmp(w, h, 32, pack32(a, (24, 16, 8)), 3, m("<III", 0xFF000000, 0xFF0000, 0xFF00)))
    put("bmp_32_v4.bmp", bmp(w, h, 32, pack32(a, (0, 8, 16)), 3, m("<IIII", 0xFF, 0xFF00, 0xFF0000, 0xFF000000), header=108))
    put("bmp_32_v5.bmp", bmp(w, h, 32, pack32(a, (16, 8, 0)), 3, m("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000), header=124))
    bgr = [r[:, ::-1].tobytes() for r in a[::-1]]
    put("bmp_top_down.bmp", bmp(w, -h, 24, bgr[::-1]))
    put("bmp_os2.bmp", bmp(w, h, 24, bgr, header=12))
    put("bmp_v5.bmp", bmp(w, h, 24, bgr, header=124))
    put("bmp_gap.bmp", bmp(w, h, 24, bgr, gap=b"gap!" * 3))
    put("bmp_reserved.bmp", bmp(w, h, 24, bgr, reserved=0x01000001))
    for bits, colours in ((8, 40), (4, 11), (1, 2)):
        q = Image.fromarray(a).quantize(colours, dither=Image.Dither.NONE)
        p = np.array(q.getpalette()[: 3 * colours]).reshape(-1, 3)
        i = np.asarray(q)
        bgrx = b"".join(bytes([*c[::-1].tolist(), 77]) for c in p)
        rows = [np.packbits(np.unpackbits(r[:, None], axis=1)[:, 8 - bits :]).tobytes() for r in i[::-1]]
        put(f"bmp_palette{bits}.bmp", bmp(w, h, bits, rows, palette=bgrx, colours=colours, gap=b"\0" * 8))
        if bits == 8:
            put("bmp_palette_os2.bmp", bmp(w, h, 8, rows, header=12, palette=b"".join(bytes(c[::-1].tolist()) for c in p) + b"\0" * 3 * (256 - colours)))
            put("bmp_rle8.bmp", bmp(w, h, 8, rle(i, w), 1, palette=bgrx, colours=colours))
            # A jump to the right and up, and rows that end early.
            jumps = bytes([3, 5, 0, 0, 2, 7, 0, 2, 4, 2, 9, 1, 0, 3, 1, 2, 3, 0, 0, 0]) + b"".join(bytes([w, 4, 0, 0]) for _ in range(h - 4)) + b"\0\1"
            put("bmp_rle8_jumps.bmp", bmp(w, h, 8, jumps, 1, palette=bgrx, colours=colours))
        if bits == 4:
            put("bmp_rle4.bmp", bmp(w, h, 4, rle(i, w, four=True), 2, palette=bgrx, colours=colours))


# --- TIFF ---


def tiff(tags, blocks, tile=None, big=False, order="<"):
    """A TIFF of the tags and of these strips or tiles. Values are lists of integers."""
    at, count, size = ((16, "Q", 8) if big else (8, "I", 4))
    body = b""
    start = at
    offsets = []
    for b in blocks:
        offsets.append(start + len(body))
        body += bytes(b) + b"\0" * (len(b) % 2)
    first = (324, 325) if tile else (273, 279)
    if tile:
        tags = tags | {322: [tile[0]], 323: [tile[1]]}
    tags = tags | {first[0]: offsets, first[1]: [len(b) for b in blocks]}
    where = at + len(body)
    n = len(tags)
    extra_at = where + (8 + 20 * n + 8 if big else 2 + 12 * n + 4)
    directory, extra = b"", b""
    for tag in sorted(tags):
        values = tags[tag]
        kind, letter = (4, "I") if max(values) > 65535 else (3, "H")
        raw = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(raw) > size:
            pointer = struct.pack(order + count, extra_at + len(extra))
            extra += raw + b"\0" * (len(raw) % 2)
            raw = pointer
        directory += struct.pack(f"{order}HH{count}", tag, kind, len(values)) + raw.ljust(size, b"\0")
    mark = b"II" if order == "<" else b"MM"
    if big:
        head = mark + struct.pack(order + "HHHQ", 43, 8, 0, where)
        return head + body + struct.pack(order + "Q", n) + directory + b"\0" * 8 + extra
    head = mark + struct.pack(order + "HI", 42, where)
    return head + body + struct.pack(order + "H", n) + directory + b"\0" * 4 + extra


def tags(w, h, bits, photometric, compression=1, rows=None, **more):
    t = {256: [w], 257: [h], 258: bits, 259: [compression], 262: [photometric], 277: [len(bits)], 278: [rows or h]}
    return t | {int(k[1:]): v for k, v in more.items()}


def packbits(data):
    out = bytearray()
    for i in range(0, len(data), 2):
        pair = data[i : i + 2]
        out += bytes([255, pair[0]]) if len(pair) == 2 and pair[0] == pair[1] else bytes([len(pair) - 1]) + pair
        if i % 10 == 0:
            out += b"\x80"
    return bytes(out)


def bits_of(a, bits):
    """Rows of packed samples."""
    return b"".join(np.packbits(np.unpackbits(r.astype(">u2").view(np.uint8).reshape(-1, 2), axis=1)[:, 16 - bits :]).tobytes() for r in a)


def make_tiff():
    a = scene(37, 22, 21)
    h, w, _ = a.shape
    planes = [a[:, :, i].tobytes() for i in range(3)]
    rgb = dict(bits=[8, 8, 8], photometric=2)
    put("tiff_planar.tif", tiff(tags(w, h, **rgb, t284=[2]), planes))
    strips = [zlib.compress(a[y : y + 5, :, i].tobytes()) for i in range(3) for y in range(0, h, 5)]
    put("tiff_planar_deflate.tif", tiff(tags(w, h, **rgb, compression=8, rows=5, t284=[2]), strips, order=">"))
    put("tiff_planar_packbits.tif", tiff(tags(w, h, **rgb, compression=32773, t284=[2]), [packbits(p) for p in planes]))
    padded = np.pad(a, ((0, 32 - h), (0, 48 - w), (0, 0)))
    pieces = [padded[y : y + 16, x : x + 16] for y in (0, 16) for x in (0, 16, 32)]
    put("tiff_planar_tiles.tif", tiff(tags(w, h, **rgb, t284=[2]), [p[:, :, i].tobytes() for i in range(3) for p in pieces], tile=(16, 16)))
    put("tiff_big.tif", tiff(tags(w, h, **rgb), [a.tobytes()], big=True))
    put("tiff_big_endian.tif", tiff(tags(w, h, **rgb, rows=7), [a[y : y + 7].tobytes() for y in range(0, h, 7)], big=True, order=">"), of=a)
    put("tiff_big_tiles.tif", tiff(tags(w, h, **rgb), [p.tobytes() for p in pieces], tile=(16, 16), big=True))
    cmyk = np.dstack([255 - a, a[:, :, 1] // 3])
    put("tiff_cmyk.tif", tiff(tags(w, h, [8] * 4, 5), [cmyk.tobytes()]))
    difference = np.dstack([np.diff(cmyk.astype(int), axis=1, prepend=0)]).astype(np.uint8)
    put("tiff_cmyk_deflate.tif", tiff(tags(w, h, [8] * 4, 5, compression=8, t317=[2]), [zlib.compress(difference.tobytes())]))
    put("tiff_cmyk_planar.tif", tiff(tags(w, h, [8] * 4, 5, t284=[2]), [cmyk[:, :, i].tobytes() for i in range(4)]))
    grey = a[:, :, 1]
    put("tiff_grey_alpha.tif", tiff(tags(w, h, [8, 8], 1, t338=[2]), [np.dstack([grey, grey[::-1]]).tobytes()]))
    put("tiff_rgbx.tif", tiff(tags(w, h, [8] * 4, 2, t338=[0]), [np.dstack([a, grey]).tobytes()]))
    put("tiff_grey_big.tif", tiff(tags(w, h, [8], 1), [grey.tobytes()], big=True))
    put("tiff_white_is_zero_big.tif", tiff(tags(w, h, [8], 0), [grey.tobytes()], big=True))
    for bits in (2, 4):
        put(f"tiff_grey{bits}.tif", tiff(tags(w, h, [bits], 1), [bits_of(grey >> (8 - bits), bits)]))
    colours = [int(v) * 257 for v in np.random.default_rng(3).integers(0, 256, 48)]
    put("tiff_palette4.tif", tiff(tags(w, h, [4], 3, t320=colours), [bits_of(grey >> 4, 4)]))
    deep = a.astype(np.uint16) << 8 | a[::-1]
    put("tiff_planar16.tif", tiff(tags(w, h, [16] * 3, 2, t284=[2]), [deep[:, :, i].astype("<u2").tobytes() for i in range(3)]), of=a)
    put("tiff_big16.tif", tiff(tags(w, h, [16] * 3, 2), [deep.astype(">u2").tobytes()], big=True, order=">"), of=a)


def make_tiff_jpeg():
    image = Image.fromarray(scene(37, 44, 25))
    put("tiff_jpeg.tif", encoded(image, "TIFF", compression="jpeg", quality=90))
    put("tiff_jpeg_strips.tif", encoded(image, "TIFF", compression="jpeg", quality=90, strip_size=37 * 3 * 16))
    put("tiff_jpeg_grey.tif", encoded(image.convert("L"), "TIFF", compression="jpeg", quality=90))
    put("tiff_jpeg_big.tif", encoded(image, "TIFF", compression="jpeg", quality=90, big_tiff=True))
    a = np.pad(np.asarray(image), ((0, 4), (0, 11), (0, 0)), mode="edge")
    pieces = [bytes(encoded(Image.fromarray(a[y : y + 16, x : x + 16]), "JPEG", quality=90, keep_rgb=True)) for y in (0, 16, 32) for x in (0, 16, 32)]
    put("tiff_jpeg_rgb_tiles.tif", tiff(tags(37, 44, [8] * 3, 2, compression=7), pieces, tile=(16, 16)))


# --- JPEG ---

def dht(data):
    """The Huffman tables of a JPEG: {(class, id): {value: (code, length)}}."""
    tables, p = {}, 2
    while data[p + 1] != 0xDA:
        n = struct.unpack(">H", data[p + 2 : p + 4])[0]
        if data[p + 1] == 0xC4:
            q = p + 4
            while q < p + 2 + n:
                key, counts = (data[q] >> 4, data[q] & 15), data[q + 1 : q + 17]
                code, t, q = 0, {}, q + 17
                for length, count in enumerate(counts, 1):
                    for _ in range(count):
                        t[data[q]] = (code, length)
                        code, q = code + 1, q + 1
                    code <<= 1
                tables[key] = t
        p += 2 + n
    return tables


ZIGZAG = sorted(range(64), key=lambda i: (i // 8 + i % 8, (i // 8 if (i // 8 + i % 8) % 2 else i % 8)))


def blocks_of(plane, w, h, bw, bh):
    """Quantized coefficients (by 6) of bw×bh blocks in zigzag order."""
    p = np.pad(plane.astype(float), ((0, 8 * bh - h), (0, 8 * bw - w)), mode="edge") - 128
    k = np.arange(8)
    t = np.cos((2 * k[None] + 1) * k[:, None] * np.pi / 16) * np.where(k[:, None] == 0, np.sqrt(1 / 8), 0.5)
    out = {}
    for y in range(bh):
        for x in range(bw):
            c = t @ p[8 * y : 8 * y + 8, 8 * x : 8 * x + 8] @ t.T
            out[x, y] = [int(round(c.flat[i] / 6)) for i in ZIGZAG]
    return out


def sampled(a, factors, restart=0, tail=b""):
    """A baseline JPEG with these sampling factors, chroma by averages."""
    h, w, _ = a.shape
    ycc = np.asarray(Image.fromarray(a).convert("YCbCr"))
    usual = bytes(encoded(Image.fromarray(a), "JPEG"))
    tables = dht(usual)
    hm, vm = max(f >> 4 for f in factors), max(f & 15 for f in factors)
    across, down = -(-w // (8 * hm)), -(-h // (8 * vm))
    parts = []
    for i, f in enumerate(factors):
        fh, fv = f >> 4, f & 15
        pw, ph = -(-w * fh // hm), -(-h * fv // vm)
        plane = np.asarray(Image.fromarray(ycc[:, :, i]).resize((pw, ph), Image.Resampling.BOX))
        parts.append(blocks_of(plane, pw, ph, across * fh, down * fv))
    out, bits = bytearray(), ""

    def flush():
        nonlocal bits
        bits += "1" * (-len(bits) % 8)
        for j in range(0, len(bits), 8):
            b = int(bits[j : j + 8], 2)
            out.append(b)
            if b == 255:
                out.append(0)
        bits = ""

    def emit(table, symbol, value=0, size=0):
        nonlocal bits
        code, length = table[symbol]
        bits += format(code, f"0{length}b")
        if size:
            bits += format(value if value > 0 else value + (1 << size) - 1, f"0{size}b")

    last = [0, 0, 0]
    for mcu in range(across * down):
        if restart and mcu and mcu % restart == 0:
            flush()
            out += bytes([0xFF, 0xD0 + (mcu // restart - 1) % 8])
            last = [0, 0, 0]
        for i, f in enumerate(factors):
            fh, fv = f >> 4, f & 15
            dc, ac = tables[0, min(i, 1)], tables[1, min(i, 1)]
            for k in range(fh * fv):
                c = parts[i][mcu % across * fh + k % fh, mcu // across * fv + k // fh]
                d, last[i] = c[0] - last[i], c[0]
                emit(dc, abs(d).bit_length(), d, abs(d).bit_length())
                run = 0
                for v in c[1:]:
                    if v == 0:
                        run += 1
                        continue
                    while run > 15:
                        emit(ac, 0xF0)
                        run -= 16
                    emit(ac, run << 4 | abs(v).bit_length(), v, abs(v).bit_length())
                    run = 0
                if run:
                    emit(ac, 0)
    flush()
    sof = struct.pack(">BHHB", 8, h, w, 3) + b"".join(bytes([i + 1, f, 0]) for i, f in enumerate(factors))
    segment = lambda m, b: bytes([0xFF, m]) + struct.pack(">H", len(b) + 2) + b
    tables_at = usual.index(b"\xff\xc4")
    return (b"\xff\xd8" + segment(0xDB, b"\0" + bytes([6] * 64)) + segment(0xC0, sof)
            + usual[tables_at : usual.index(b"\xff\xda")]
            + (segment(0xDD, struct.pack(">H", restart)) if restart else b"")
            + segment(0xDA, b"\x03\x01\x00\x02\x11\x03\x11\x00\x3f\x00") + bytes(out) + b"\xff\xd9")


def make_jpeg():
    a = scene(45, 31, 22)
    for factors in ((0x22, 0x11, 0x12), (0x22, 0x12, 0x11), (0x22, 0x21, 0x12), (0x21, 0x11, 0x21), (0x42, 0x11, 0x11), (0x14, 0x11, 0x11),
                    (0x22, 0x21, 0x11), (0x31, 0x11, 0x11), (0x11, 0x22, 0x22), (0x11, 0x21, 0x11), (0x12, 0x12, 0x11)):
        put("jpeg_sampled_" + "_".join(f"{f:02x}" for f in factors) + ".jpg", sampled(a, factors))
    put("jpeg_sampled_restart.jpg", sampled(a, (0x22, 0x11, 0x12), restart=2))
    put("jpeg_sampled_3x5.jpg", sampled(scene(3, 5, 4), (0x22, 0x11, 0x12)))
    for name, image, options in (("mjpeg", Image.fromarray(a), {"subsampling": 1}), ("mjpeg_grey", Image.fromarray(a).convert("L"), {})):
        data = bytes(encoded(image, "JPEG", quality=85, **options))
        p, kept = 2, b"\xff\xd8"
        while data[p + 1] != 0xDA:
            n = 2 + struct.unpack(">H", data[p + 2 : p + 4])[0]
            kept += data[p : p + n] if data[p + 1] != 0xC4 else b""
            p += n
        put(f"jpeg_{name}.jpg", kept + data[p:])


# --- PNG ---


def make_png():
    data = bytes(encoded(Image.fromarray(scene(30, 17, 23)), "PNG"))
    end = data.index(b"IEND") - 4
    put("no_end.png", data[:end])
    put("no_end_text.png", data[:end] + png_chunk(b"tEXt", b"a\0b")[:-3])


# --- Orientation ---


def make_upright():
    image = Image.fromarray(scene(23, 14, 24))
    for o in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = o
        put(f"upright_{o}.jpg", encoded(image, "JPEG", quality=90, exif=exif))
    exif[0x0112] = 6
    put("upright_grey.jpg", encoded(image.convert("L"), "JPEG", exif=exif))
    put("upright.png", encoded(image, "PNG", exif=exif))
    put("upright_lossy.webp", encoded(image, "WEBP", exif=exif))
    put("upright_lossless.webp", encoded(image, "WEBP", exif=exif, lossless=True))
    moving = [image, image.transpose(Image.Transpose.ROTATE_180)]
    put("upright_animated.webp", encoded(moving[0], "WEBP", save_all=True, append_images=moving[1:], exif=exif))
    big_endian = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x08\0\0\0\0\0\0"
    put("upright_motorola.jpg", encoded(image, "JPEG", exif=big_endian))
    put("upright_9.jpg", encoded(image, "JPEG", exif=big_endian.replace(b"\0\x08\0\0\0\0", b"\0\x09\0\0\0\0")))
    put("upright_damaged.jpg", encoded(image, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\xff"))
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'
    put("upright_xmp.jpg", encoded(image, "JPEG", xmp=xmp))
    put("upright_both.jpg", encoded(image, "JPEG", xmp=xmp, exif=exif))
    put("upright_xmp.webp", encoded(image, "WEBP", xmp=xmp))
    png = bytes(encoded(image, "PNG"))
    at = png.index(b"IDAT") - 4
    put("upright_xmp.png", png[:at] + png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp.replace(b'="3"', b'="5"')) + png[at:])
    raw = exif.tobytes()
    text = f"\nexif\n{len(raw):8}\n{raw.hex()}\n".encode()
    put("upright_text.png", png[:at] + png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text)) + png[at:])
    put("upright_late.png", png[: png.index(b"IEND") - 4] + png_chunk(b"eXIf", raw.removeprefix(b"Exif\0\0")) + png[png.index(b"IEND") - 4 :])
    put("upright_7.tif", encoded(image, "TIFF", tiffinfo={274: 7}))


def make_expected():
    for name in names:
        with (Image.fromarray(pixels[name]) if name in pixels else Image.open(HERE / name)) as opened:
            image = ImageOps.exif_transpose(opened) if name.startswith("upright_") or name == "upright.png" else opened
            image = image.convert("RGB")
        image.info = {}
        for size in (image.size, (16, 16)):
            out = image.resize(size, Image.Resampling.BILINEAR)
            out.save(EXPECTED / f"{name}.{size[0]}x{size[1]}.png", optimize=True)


def make_cases():
    for file in sorted(CASES.iterdir()):
        if file.name.endswith((".16.png", ".heic", ".avif")):
            continue
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode == "I;16":  # by the scale of 12 bits
                image = Image.fromarray((np.asarray(image).astype(int) * 256 // 4096).clip(0, 255).astype(np.uint8))
            image.convert("RGB").resize((16, 16), Image.Resampling.BILINEAR).save(f"{file}.16.png")


if __name__ == "__main__":
    make_bmp()
    make_tiff()
    make_tiff_jpeg()
    make_jpeg()
    make_png()
    make_upright()
    make_expected()
    make_cases()
