"""Makes the image goldens: small inputs of every format the service reads, and
what Pillow makes of them.

Run from the repository's root:

    python testdata/golden/make_images.py

Made with Python 3.11, Pillow 13.0.0 (libjpeg-turbo 3.2.0), NumPy 2.4.6 and, for
the check below, torchvision 0.29.2. Other versions of libjpeg-turbo, libwebp or
libtiff may write other bytes for the inputs; the expectations come from the
same run, so the tests stay consistent.

It writes

    testdata/golden/images/<name>                        the inputs
    testdata/golden/images/expected/<name>.<w>x<h>.png   Image.open(<name>)
        .convert("RGB"), as it is and by .resize((w, h), Image.BILINEAR)

and asserts that torchvision's resize (antialias, on a PIL image) gives the same
bytes as Pillow's, so that a model trained through torchvision sees them too.
"""

import io
import shutil
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent / "images"
EXPECTED = HERE / "expected"


def scene(w, h, seed=0):
    """A picture with gradients, hard coloured edges and some noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:h, 0:w].astype(float)
    fx, fy = x / max(w - 1, 1), y / max(h - 1, 1)
    a = np.stack([255 * fx, 255 * fy, 255 * (1 - fx) * fy], -1)
    a[(x - w / 3) ** 2 + (y - h / 2) ** 2 < (min(w, h) / 4) ** 2] = (230, 20, 40)
    a[(x > w * 0.6) & (y > h * 0.55)] = (10, 30, 220)
    a[(x + y) % 11 == 0] = (250, 250, 10)
    a += rng.normal(0, 6, a.shape)
    return np.clip(np.round(a), 0, 255).astype(np.uint8)


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(w, h, depth, colour, rows, interlace=0, extra=b""):
    """A PNG that Pillow does not write: rows are the unfiltered scanlines."""
    head = struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, interlace)
    body = zlib.compress(b"".join(b"\0" + bytes(r) for r in rows), 9)
    return (b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + extra
            + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b""))


def interlaced_png(a):
    h, w, _ = a.shape
    rows = []
    for x0, y0, dx, dy in ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4),
                           (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)):
        part = a[y0::dy, x0::dx]
        if part.size:
            rows += [r.tobytes() for r in part]
    return raw_png(w, h, 8, 2, rows, interlace=1)


def save(name, image, **options):
    image.save(HERE / name, **options)


def write(name, data):
    (HERE / name).write_bytes(data)


def encoded(image, fmt, **options):
    b = io.BytesIO()
    image.save(b, fmt, **options)
    return bytearray(b.getvalue())


def resampled(a, subsampling, factors, w, h):
    """A JPEG with sampling factors that Pillow does not write: the header of
    one with as many blocks in as many units is changed. The picture is
    scrambled, and the same to every decoder."""
    b = encoded(Image.fromarray(a), "JPEG", quality=90, subsampling=subsampling)
    at = b.index(b"\xff\xc0")
    b[at + 5 : at + 9] = struct.pack(">HH", h, w)
    b[at + 11] = factors
    return b


def with_alpha(a):
    """Alpha from 0 to 255 with colours left under the transparent part."""
    h, w, _ = a.shape
    alpha = np.tile(np.linspace(0, 255, w).astype(np.uint8), (h, 1))
    alpha[: h // 3] = 0
    return np.dstack([a, alpha])


def make_inputs():
    a = scene(36, 27)
    rgb = Image.fromarray(a)
    grey = rgb.convert("L")
    rgba = Image.fromarray(with_alpha(a))
    palette = rgb.quantize(32, dither=Image.Dither.NONE)

    save("rgb.png", rgb)
    save("grey.png", grey)
    save("grey_alpha.png", rgba.convert("LA"))
    save("rgba.png", rgba)
    save("rgb_transparent_colour.png", rgb, transparency=tuple(int(v) for v in a[3, 4]))
    save("palette.png", palette)
    save("palette_transparent.png", palette, transparency=3)
    save("palette_alpha.png", palette, transparency=bytes(range(0, 256, 8)))
    save("palette4.png", rgb.quantize(11, dither=Image.Dither.NONE), bits=4)
    save("bilevel.png", grey.convert("1"))
    write("interlaced.png", interlaced_png(scene(29, 23, 1)))
    write("grey2.png", raw_png(16, 4, 2, 0, [[0x1B] * 4, [0xE4] * 4, [0xFF] * 4, [0x1B] * 4]))
    write("palette_short.png", raw_png(8, 1, 8, 3, [[0, 1, 0, 1, 3, 4, 5, 200]],
                                       extra=png_chunk(b"PLTE", bytes([10, 20, 30, 40, 50, 60]))))
    deep = (a.astype(np.uint16) << 8) | a[::-1].astype(np.uint16)
    write("rgb16.png", raw_png(36, 27, 16, 2, deep.astype(">u2").reshape(27, -1).view(np.uint8)))
    deep4 = np.dstack([deep, np.full((27, 36), 0x1234, np.uint16)])
    write("rgba16.png", raw_png(36, 27, 16, 6, deep4.astype(">u2").reshape(27, -1).view(np.uint8)))
    save("grey16.png", Image.fromarray(deep[:, :, 0].copy()))

    # One-pixel sides.
    for w, h in ((1, 1), (1, 33), (47, 1), (2, 3)):
        save(f"tiny_{w}x{h}.png", Image.fromarray(scene(w, h, 2)))
    save("noise_48.png", Image.fromarray(np.random.default_rng(5).integers(0, 256, (48, 48, 3), np.uint8)))
    save("tall_24x90.png", Image.fromarray(np.random.default_rng(6).integers(0, 256, (90, 24, 3), np.uint8)))
    save("long_131x9.png", Image.fromarray(scene(131, 9, 3)))

    # JPEG: 0 is 4:4:4, 1 is 4:2:2, 2 is 4:2:0, at even, odd and tiny sizes.
    for name, sub in (("444", 0), ("422", 1), ("420", 2)):
        for w, h in ((48, 32), (45, 31), (17, 9)):
            save(f"jpeg_{name}_{w}x{h}.jpg", Image.fromarray(scene(w, h, 4)), quality=90, subsampling=sub)
    for w, h in ((48, 32), (45, 31), (17, 9)):
        write(f"jpeg_440_{h}x{w}.jpg", resampled(scene(w, h, 4), 1, 0x12, h, w))
    for w, h, w4, h4 in ((48, 32, 96, 16), (45, 31, 89, 15), (17, 9, 33, 5)):
        write(f"jpeg_411_{w4}x{h4}.jpg", resampled(scene(w, h, 4), 2, 0x41, w4, h4))
    for w, h in ((1, 1), (3, 5), (4, 2), (5, 3), (6, 1)):
        save(f"jpeg_420_{w}x{h}.jpg", Image.fromarray(scene(w, h, 4)), quality=90, subsampling=2)
    save("jpeg_422_3x5.jpg", Image.fromarray(scene(3, 5, 4)), quality=90, subsampling=1)
    save("jpeg_quality30.jpg", Image.fromarray(scene(48, 48, 4)), quality=30)
    save("jpeg_progressive.jpg", rgb, quality=85, progressive=True)
    save("jpeg_restart.jpg", rgb, quality=85, restart_marker_rows=1)
    save("jpeg_grey.jpg", grey, quality=90)
    save("jpeg_cmyk.jpg", Image.fromarray(np.dstack([255 - a, a[:, :, 1] // 2])[:, :, :4].copy(), "CMYK"), quality=95)
    save("jpeg_rgb.jpg", rgb, quality=90, keep_rgb=True)
    turned = Image.Exif()
    turned[0x0112] = 6
    save("jpeg_exif_turned.jpg", rgb, quality=90, exif=turned)

    # GIF: Pillow's own, then what only the bytes can say.
    save("plain.gif", palette)
    save("transparent.gif", palette, transparency=3)
    save("grey.gif", grey)
    save("interlaced.gif", palette, interlace=1)
    frames = [Image.fromarray(scene(24, 20, s)).quantize(16, dither=Image.Dither.NONE) for s in (6, 7, 8)]
    save("animated.gif", frames[0], save_all=True, append_images=frames[1:], duration=50, loop=0)
    small = Image.fromarray(scene(12, 9, 9)).quantize(7, dither=Image.Dither.NONE)
    for name, transparency in (("screen.gif", None), ("screen_transparent.gif", 2)):
        b = encoded(small, "GIF", **({} if transparency is None else {"transparency": transparency}))
        b[6], b[8] = 20, 15  # a screen larger than the frame
        write(name, b)
    b = encoded(small, "GIF")
    b[6], b[8] = 5, 4  # a frame larger than the screen
    write("frame_too_large.gif", b)
    b = encoded(small, "GIF", transparency=2)
    b[b.index(b"\x21\xf9") + 6] = 200  # a transparent index beyond the table
    b[6] = 20
    write("screen_transparent_beyond.gif", b)

    save("rgb.bmp", rgb)
    save("grey.bmp", grey)
    save("palette.bmp", palette)
    save("bilevel.bmp", grey.convert("1"))
    save("rgba.bmp", rgba)

    save("rgb.tif", rgb)
    save("rgb_lzw.tif", rgb, compression="tiff_lzw")
    save("rgb_deflate.tif", rgb, compression="tiff_adobe_deflate")
    save("rgb_packbits.tif", rgb, compression="packbits")
    save("grey_lzw.tif", grey, compression="tiff_lzw")
    save("palette.tif", palette)
    save("rgba.tif", rgba, compression="tiff_lzw")
    for name in ("group3", "group4"):
        b = encoded(grey.convert("1"), "TIFF", compression=name)
        at = b.index(struct.pack("<HHI", 262, 3, 1)) + 8
        for zero, value in (("black", 1), ("white", 0)):
            b[at] = value
            write(f"bilevel_{name}_{zero}_is_zero.tif", b)
    save("grey16.tif", Image.fromarray(deep[:, :, 0].copy()))
    premultiplied = with_alpha(a)
    premultiplied[:, :, :3] = (premultiplied[:, :, :3].astype(int) * premultiplied[:, :, 3:] // 255)
    b = encoded(Image.fromarray(premultiplied), "TIFF")
    at = b.index(struct.pack("<HHI", 338, 3, 1)) + 8
    b[at] = 1  # ExtraSamples: associated alpha
    write("rgba_associated.tif", b)
    for o in range(2, 9):
        save(f"orientation_{o}.tif", Image.fromarray(scene(7, 5, 10)), tiffinfo={274: o})

    save("lossy.webp", rgb, quality=85)
    save("lossy_17x9.webp", Image.fromarray(scene(17, 9, 4)), quality=85)
    save("lossy_1x1.webp", Image.fromarray(scene(1, 1, 4)), quality=85)
    save("lossy_2x3.webp", Image.fromarray(scene(2, 3, 4)), quality=85)
    save("lossy_alpha.webp", rgba, quality=85)
    save("lossy_alpha_exact.webp", rgba, quality=85, exact=True)
    save("lossless.webp", rgb, lossless=True)
    save("lossless_alpha.webp", rgba, lossless=True, exact=True)
    moving = [Image.fromarray(scene(24, 20, s)) for s in (6, 7, 8)]
    clear = [Image.fromarray(with_alpha(scene(24, 20, s))) for s in (6, 7, 8)]
    for name, frames, options in (("lossy", moving, {}), ("lossless", moving, {"lossless": True}),
                                  ("lossy_alpha", clear, {}), ("lossless_alpha", clear, {"lossless": True, "exact": True})):
        save(f"animated_{name}.webp", frames[0], save_all=True, append_images=frames[1:], duration=50, **options)
    b = encoded(moving[0], "WEBP", save_all=True, append_images=moving[1:], duration=50)
    at = b.index(b"VP8X") + 8
    b[at + 4], b[at + 7] = 40 - 1, 30 - 1  # a canvas larger than the frame
    at = b.index(b"ANMF") + 8
    b[at], b[at + 3] = 6 // 2, 4 // 2
    write("animated_canvas.webp", b)


def make_expected():
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    # Every input as it is and reduced; some in every direction.
    many = {
        "noise_48.png": [(48, 12), (12, 48), (47, 49), (1, 1), (7, 46)],
        # Either side of where Pillow changes the order of its passes.
        "tall_24x90.png": [(16, 74), (16, 73), (24, 16), (48, 16), (48, 89), (5, 85)],
        "rgb.png": [(36, 16), (16, 27), (48, 48), (1, 90)],
        "long_131x9.png": [(32, 32)],
        "tiny_1x33.png": [(48, 48)],
        "tiny_47x1.png": [(48, 48)],
        "tiny_1x1.png": [(32, 32)],
        "tiny_2x3.png": [(48, 48)],
    }
    for f in sorted(HERE.iterdir()):
        if f.is_dir():
            continue
        with Image.open(f) as opened:
            image = opened.convert("RGB")
        image.info = {}  # or the transparency that convert dropped is saved again
        for size in [image.size, (16, 16), *many.get(f.name, [])]:
            out = image.resize(size, Image.Resampling.BILINEAR)
            tv = F.resize(image, [size[1], size[0]], InterpolationMode.BILINEAR, antialias=True)
            assert np.array_equal(np.asarray(out), np.asarray(tv)), (f.name, size)
            out.save(EXPECTED / f"{f.name}.{size[0]}x{size[1]}.png", optimize=True)


def main():
    shutil.rmtree(HERE, ignore_errors=True)
    EXPECTED.mkdir(parents=True)
    make_inputs()
    make_expected()
    total = sum(f.stat().st_size for f in HERE.rglob("*") if f.is_file())
    print(f"{total} bytes in {HERE}, Pillow {Image.__version__}", file=sys.stderr)


if __name__ == "__main__":
    main()
