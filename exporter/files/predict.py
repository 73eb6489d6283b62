#!/usr/bin/env python3
"""Decide with the model in this folder whether images are normal or anomalies.

    python predict.py                                     # the one image in the current folder
    python predict.py photo.jpg folder/ "more/**/*.png"
    python predict.py folder/ --json > verdicts.json
    python predict.py folder/ --model old.pt              # with PyTorch, if it is installed
    python predict.py photo.jpg old.pt metadata.json      # image, model and metadata

An image is a PNG, JPEG, BMP, TIFF, GIF, WebP or DICOM file; DICOM requires pydicom, and each
frame of it is an image. A folder means the images in it and in its subfolders, without hidden
files. A pattern must be quoted; ** in it matches any number of folders. A .pt has only the autoencoder: a model whose anomaly score is not the mean squared
error needs the autoencoder.onnx of the same training. Requires onnxruntime, Pillow and numpy
(requirements.txt). Exit status: 0 if all images are normal, 1 if there are anomalies, 2 if an
image or the model could not be read. Without images on the command line, it is 0 or 2.

    from predict import detect_anomaly
    result = detect_anomaly("photo.jpg")                  # {"reconstruction_error": ..., ...}
"""
import argparse
import collections
import contextlib
import glob
import itertools
import json
import math
import pickle
import sys
from pathlib import Path

try:
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError
except ImportError as missing:
    if __name__ != "__main__":
        raise
    print(f"{missing}: pip install -r requirements.txt", file=sys.stderr)
    sys.exit(2)

# A file is an image if its name has one of these endings, or if it has none and its content
# begins like an image.
ENDINGS = {".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".webp", ".dcm", ".dicom"}
FORMATS = {
    "PNG": [b"\x89PNG\r\n\x1a\n"], "JPEG": [b"\xff\xd8\xff"], "BMP": [b"BM"], "GIF": [b"GIF87a", b"GIF89a"],
    "TIFF": [b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"], "WEBP": [b"RIFF"],
}
BMP_HEADERS = [bytes([size, 0, 0, 0]) for size in (12, 40, 52, 56, 64, 108, 124)]
# Formats that are recognized in order to name them in an error: offset, bytes and name.
OTHER_FORMATS = [
    (4, b"ftyphe", "HEIC"), (4, b"ftypmif1", "HEIC"), (4, b"ftypmsf1", "HEIC"), (4, b"ftypavi", "AVIF"), (128, b"DICM", "DICOM"),
    (4, b"jP  ", "JPEG 2000"), (0, b"\xff\x4f\xff\x51", "JPEG 2000"), (4, b"JXL ", "JPEG XL"), (0, b"\xff\x0a", "JPEG XL"),
    (0, b"8BPS", "Photoshop"),
]
BATCH = 8  # images in one run of the network
MAX_REGIONS = 20
MAX_FRAMES = 2000  # of a DICOM file
MAX_TILES = 4096  # of an image
MAX_MAP = 4 << 20  # values of the anomaly map of an image of tiles
MODEL = Path(__file__).with_name("autoencoder.onnx")

# measure takes N×3×height×width images, -1 in pixels that are not judged, and returns their mean
# squared errors, their scores by the model's other measure and, with maps, their anomaly maps.
# Scores and maps are None if the model has no other measure. size is the width and the height.
# other_measure is the other measure's name, or None. first_place is the
# index of the first of these tiles in its image.
Model = collections.namedtuple("Model", "measure size metadata other_measure")


class Problem(Exception):
    """The model, its metadata or an image cannot be used. The message is one sentence with the remedy."""


def load(path):
    return load_checkpoint(path) if path.lower().endswith(".pt") else load_onnx(path)


def load_onnx(path):
    try:
        import onnxruntime
    except ImportError:
        raise Problem("onnxruntime is not installed: pip install -r requirements.txt")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    image = session.get_inputs()[0]
    if image.type != "tensor(float)" or "reconstruction_error" not in [o.name for o in session.get_outputs()]:
        raise Problem("its inputs or outputs differ from autoencoder.onnx; use that file")
    about = session.get_modelmeta().custom_metadata_map
    text = about.get("metadata_json")
    outputs = [o.name for o in session.get_outputs()]
    other_measure = about.get("measure") if "mse" in outputs else None
    by_place = "place" in [i.name for i in session.get_inputs()]

    def measure(images, with_maps, first_place=0):
        inputs = {"image": images}
        if by_place:
            inputs["place"] = np.arange(first_place, first_place + len(images), dtype=np.float32)
        if other_measure is None:
            return session.run(["reconstruction_error"], inputs)[0], None, None
        names = ["mse", "reconstruction_error"]
        if with_maps and "anomaly_map" in outputs:
            return session.run(names + ["anomaly_map"], inputs)
        return session.run(names, inputs) + [None]

    return Model(measure, (image.shape[3], image.shape[2]), json.loads(text) if text else None, other_measure)


def load_checkpoint(path):
    try:
        import torch
        from torch import nn
    except ImportError:
        raise Problem("PyTorch is not installed: pip install torch, or use autoencoder.onnx, which does not require it")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        weights, config = checkpoint["model_state_dict"], checkpoint["config"]
    except (pickle.UnpicklingError, KeyError, TypeError):
        raise Problem("it is not the autoencoder.pt of a training")
    widths = [w.shape[0] for name, w in weights.items() if name.startswith("encoder.") and name.endswith(".weight")]
    channels = config.get("channels", [3, *widths])
    encoder, decoder = [], []
    for outer, inner in zip(channels, channels[1:]):
        encoder += [nn.Conv2d(outer, inner, 3, stride=2, padding=1), nn.ReLU()]
        decoder = [nn.ConvTranspose2d(inner, outer, 3, stride=2, padding=1, output_padding=1), nn.ReLU()] + decoder
    decoder[-1] = nn.Sigmoid()
    network = nn.Sequential(collections.OrderedDict(encoder=nn.Sequential(*encoder), decoder=nn.Sequential(*decoder)))
    network.load_state_dict(weights, strict=True)
    if "metadata_json" in config:
        metadata = json.loads(config["metadata_json"])
    else:  # a checkpoint without metadata: the same defaults as in the service
        metadata = {"threshold": float(config.get("threshold", 0.02)), "class_names": config.get("class_names")}

    def measure(images, with_maps, first_place=0):
        images = torch.from_numpy(images)
        with torch.no_grad():
            if (images >= 0).all():
                return ((network(images) - images) ** 2).mean(dim=(1, 2, 3)).numpy(), None, None
            inside, images = (images >= 0).float(), images.clamp(min=0)
            errors = ((network(images) - images) ** 2 * inside).sum(dim=(1, 2, 3))
            return (errors / inside.sum(dim=(1, 2, 3))).numpy(), None, None

    preprocessing = metadata.get("preprocessing") or {}
    side = config.get("image_size")
    return Model(measure, (side, side) if side else (preprocessing["width"], preprocessing["height"]), metadata, None)


def decision_of(metadata, model):
    """Return the measure, the threshold and the class names of a metadata.json, and the model's preprocessing."""
    if not isinstance(metadata, dict):
        raise Problem("it is not a metadata.json")
    if metadata.get("model_type") not in (None, "", "autoencoder"):
        raise Problem(f"it is the metadata of a {metadata['model_type']}, not of an autoencoder")
    decision = metadata.get("decision")
    if decision is None:
        decision = {"measure": "mse", "threshold": metadata.get("threshold")}
    if decision.get("measure") not in ("mse", model.other_measure):
        raise Problem(f"the model decides by {decision.get('measure')}, which this file does not give; use the autoencoder.onnx of the same training, which has the whole model")
    for threshold in metadata.get("threshold"), decision.get("threshold"):
        if not isinstance(threshold, (int, float)) or not 0 <= threshold < math.inf:
            raise Problem(f"the threshold is {threshold}, expected a number of 0 or more")
    preprocessing = (model.metadata or {}).get("preprocessing") or {}
    return decision["measure"], decision["threshold"], metadata.get("class_names") or ["normal", "anomaly"], preprocessing


def find(arguments):
    """Return the images of the arguments, and the files in folders that are not images.

    Missing files are among the images, so that each is reported.
    """
    images, passed_over = [], []
    for argument in arguments:
        if Path(argument).is_dir():
            add_folder(argument, images, passed_over)
        elif Path(argument).exists() or not any(c in argument for c in "*?["):
            images.append(argument)
        else:
            found = []
            for match in sorted(map(Path, glob.glob(argument, recursive=True))):
                if "__MACOSX" in match.parts or is_hidden(match.parts[-1:]):
                    continue
                if match.is_dir():
                    add_folder(match, found, [])
                elif is_image(match):
                    found.append(str(match))
            images += dict.fromkeys(found or [argument])  # without duplicates
    return images, passed_over


def add_folder(folder, images, passed_over):
    for path in sorted(Path(folder).rglob("*")):
        if not is_hidden(path.relative_to(folder).parts) and not path.is_dir():
            (images if is_image(path) else passed_over).append(str(path))


def is_hidden(parts):
    """Report whether a file is hidden or one of the copies that macOS adds to archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def is_image(path):
    return path.suffix.lower() in ENDINGS or path.suffix == "" and (format_of(path) in FORMATS or is_dicom(path))


def format_of(path):
    """Return the name of the image format that the file's content begins with, or None."""
    try:
        if not Path(path).is_file():  # a pipe would block
            return None
        with open(path, "rb") as file:
            head = file.read(132)
    except OSError:
        return None
    for name, beginnings in FORMATS.items():
        if not head.startswith(tuple(beginnings)):
            continue
        if name == "WEBP" and head[8:12] != b"WEBP" or name == "BMP" and head[14:18] not in BMP_HEADERS:
            continue
        return name
    return next((name for offset, text, name in OTHER_FORMATS if head.startswith(text, offset)), None)


def is_dicom(path):
    """Report whether a file is DICOM by its content, or by its name if the content is unclear."""
    found = format_of(path)
    return found == "DICOM" or found is None and Path(path).suffix.lower() in (".dcm", ".dicom")


def refusal(paths):
    """Return what to do about files of formats that are not read, or an empty string."""
    names = sorted({format_of(path) for path in paths} - {None, "DICOM", *FORMATS})
    return f"{' and '.join(names)} images are not read: export JPEG or PNG" if names else ""


def listing(paths, most=5):
    names = ", ".join(map(str, paths[:most]))
    return names if len(paths) <= most else f"{names} and {len(paths) - most} more"


def only_image():
    """Return the one image in the current folder, whose subfolders are not searched."""
    files = sorted(p for p in Path(".").iterdir() if not is_hidden(p.parts) and not p.is_dir())
    images = [p for p in files if is_image(p)]
    if len(images) > 1:
        raise Problem(f"{len(images)} images are in this folder, expected one: {listing(images)}; name the images to judge: python predict.py IMAGE...")
    if not images:
        raise Problem("no image is in this folder: " + (refusal(files) or "add one PNG, JPEG, BMP, TIFF, GIF, WebP or DICOM file, or name the images to judge: python predict.py IMAGE..."))
    return str(images[0])


def decode(path, preprocessing, opened=None, frame_number=0):
    """Return the decoded image, upright if the training's images were.

    It has 8 bits per channel, unless the model has a window: then it may be height×width×3 values.
    opened is what open_dicom returned for a DICOM file, of which the frame with that number, from 0,
    is taken.
    """
    upright = str(preprocessing.get("orientation", "")).startswith("exif")
    window = preprocessing.get("window")
    try:
        if opened is not None:
            read = read_dicom(opened, frame_number, window is not None)
        else:
            with Image.open(path, formats=list(FORMATS)) as image:
                read = to_rgb(image, path, preprocessing.get("max_value"), window is not None)
                turn = upright and image.format != "TIFF"  # Pillow rotates a TIFF itself
                if turn and isinstance(read, Image.Image):
                    read = ImageOps.exif_transpose(read)
                elif turn:
                    read = transposed(read, image)
    except UnidentifiedImageError:
        raise Problem(refusal([path]) or "it is not a PNG, JPEG, BMP, TIFF, GIF, WebP or DICOM image, or it is damaged")
    return read


def prepare(path, size, preprocessing, opened=None, frame_number=0):
    """Return the image with the preprocessing of the training, and how it is placed there.

    The image is 3×height×width in 0…1, and -1 in pixels that are not judged. opened is what
    open_dicom returned for a DICOM file, of which the frame with that number, from 0, is taken.
    """
    read, window = decode(path, preprocessing, opened, frame_number), preprocessing.get("window")
    if window is None:
        channels = [read]
    else:
        channels = [Image.fromarray(channel) for channel in in_window(np.asarray(read), window)]
    frame = frame_of(size, preprocessing.get("fit"), *channels[0].size)
    left, top, right, bottom = frame.there
    if frame.kept != (0, 0, *frame.whole):
        channels = [channel.crop(frame.kept) for channel in channels]
    resized = [np.asarray(channel.resize((right - left, bottom - top), Image.Resampling.BILINEAR), dtype=np.float32) for channel in channels]
    planes = resized[0].transpose(2, 0, 1) / np.float32(255) if window is None else np.stack(resized)
    region = preprocessing.get("region")
    if region:
        planes = np.where(placed(region, frame), planes, np.float32(-1))
        if not (planes >= 0).any():
            raise Problem(f"no part of its {frame.whole[0]}×{frame.whole[1]} pixels is in the region to judge")
    if planes.shape[1:] != (size[1], size[0]):
        whole = np.full((3, size[1], size[0]), -1, np.float32)
        whole[:, top:bottom, left:right] = planes
        planes = whole
    return planes, frame


def normalized(pixels):
    """Return height×width×3 bytes as 3×height×width in 0…1."""
    return pixels.astype(np.float32).transpose(2, 0, 1) / np.float32(255)


class Tiling:
    """The tiles of one image, and the plane that their maps are joined to.

    Tiles are evenly spaced and overlap by at least as much as the model says. What is beyond a
    small image are its last pixels. The plane has the image's size, divided by the smallest
    whole number with which it has at most MAX_MAP values. Its values are weighted means of the
    tiles that overlap there; a tile's weight falls to zero towards its edges.
    """

    def __init__(self, rgb, side, tiles):
        self.size, self.side = rgb.size, side
        longest = tiles.get("longest_side") or 0
        if longest:
            width, height = rgb.size
            short = lambda a, b: max((2 * a * longest + b) // (2 * b), 1)
            scaled = (longest, short(height, width)) if width >= height else (short(width, height), longest)
            rgb = rgb if scaled == rgb.size else rgb.resize(scaled, Image.Resampling.BILINEAR)
        self.pixels = np.asarray(rgb)
        height, width = self.pixels.shape[:2]
        self.xs, self.ys = self.starts(width, tiles["overlap"]), self.starts(height, tiles["overlap"])
        if len(self) > MAX_TILES:
            raise Problem(f"its {width}×{height} pixels are {len(self)} tiles, at most {MAX_TILES} are judged: train with larger tiles or a longest side")
        if tiles["statistics"] == "places" and (len(self.xs), len(self.ys)) != (tiles["columns"], tiles["rows"]):
            raise Problem(f"its {width}×{height} pixels are {len(self.xs)}×{len(self.ys)} tiles, expected {tiles['columns']}×{tiles['rows']}: use an image of the size of the training images")
        by = 1
        while -(-self.size[0] // by) * -(-self.size[1] // by) > MAX_MAP:
            by += 1
        self.plane = np.zeros((-(-self.size[1] // by), -(-self.size[0] // by)), np.float32)
        self.columns = self.axes(self.xs, width, self.plane.shape[1])
        self.rows = self.axes(self.ys, height, self.plane.shape[0])

    def __len__(self):
        return len(self.xs) * len(self.ys)

    def starts(self, n, overlap):
        if n <= self.side:
            return [0]
        step = self.side - overlap
        count = (n - overlap + step - 1) // step
        return [(i * (n - self.side) + (count - 1) // 2) // (count - 1) for i in range(count)]

    def tile(self, i):
        """Return tile i, 3×side×side in 0…1. Tiles are numbered row by row."""
        left, top = self.xs[i % len(self.xs)], self.ys[i // len(self.xs)]
        cut = self.pixels[top:top + self.side, left:left + self.side]
        cut = np.pad(cut, ((0, self.side - cut.shape[0]), (0, self.side - cut.shape[1]), (0, 0)), mode="edge")
        return normalized(cut)

    def axes(self, starts, n, values):
        """Return for each tile the values of the plane that it covers along an axis, its pixels there, and its weights."""
        pixels = (2 * np.arange(values) + 1) * n // (2 * values)
        ramps, within = [], np.arange(self.side) + 0.5
        for i, start in enumerate(starts):
            before = starts[i - 1] + self.side - start if i else 0
            after = start + self.side - starts[i + 1] if i + 1 < len(starts) else 0
            ramp = np.minimum(within / max(before, 0.5), (self.side - within) / max(after, 0.5))
            ramps.append(np.minimum(ramp, 1).astype(np.float32))
        covers = [np.nonzero((pixels >= s) & (pixels < s + self.side))[0] for s in starts]
        sums = np.zeros(values, np.float32)
        for start, ramp, where in zip(starts, ramps, covers):
            sums[where] += ramp[pixels[where] - start]
        return [(where, pixels[where] - start, ramp[pixels[where] - start] / sums[where]) for start, ramp, where in zip(starts, ramps, covers)]

    def add(self, i, anomaly_map):
        """Add the map of tile i to the plane."""
        columns, x, across = self.columns[i % len(self.xs)]
        rows, y, down = self.rows[i // len(self.xs)]
        if len(columns) and len(rows):
            self.plane[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1] += anomaly_map[np.ix_(y, x)] * np.outer(down, across)


def judge_tiles(model, path, preprocessing, threshold, with_regions, opened=None, frame_number=0):
    """Return the mean squared error, the other score and the regions of an image of tiles.

    The score is the highest of the tiles', less what more of them than in the calibration's
    images raise it by. The regions are None without with_regions.
    """
    image = Tiling(decode(path, preprocessing, opened, frame_number), model.size[0], preprocessing["tiles"])
    errors, scores = [], []
    for first in range(0, len(image), BATCH):
        tiles = np.stack([image.tile(i) for i in range(first, min(first + BATCH, len(image)))])
        mse, other, maps = model.measure(tiles, with_regions, first)
        errors.extend(mse)
        scores.extend(mse if other is None else other)
        for i, anomaly_map in enumerate(() if maps is None else maps):
            image.add(first + i, anomaly_map)
    calibration = ((model.metadata or {}).get("decision") or {}).get("tiles")
    more = calibration["tail"] * math.log(len(image) / calibration["count"]) if calibration else 0.0
    score = float(np.float32(max(float(max(scores)) - more, 0)))
    found = regions(image.plane, max(threshold + more, 0), frame_of(image.plane.shape[::-1], None, *image.size)) if with_regions else None
    return float(np.mean(errors, dtype=np.float64)), score, found


def transposed(values, image):
    """Return height×width×channels values, with the orientation of the image applied."""
    planes = []
    for channel in values.transpose(2, 0, 1):
        plane = Image.fromarray(np.ascontiguousarray(channel))
        plane.info = dict(image.info)  # with the EXIF data
        planes.append(np.asarray(ImageOps.exif_transpose(plane)))
    return np.stack(planes, axis=2)


def in_window(values, window):
    """Return the planes of height×width×3 values: those within the window as 0…1."""
    low, high = np.float32(window[0]), np.float32(window[1])
    values = (values.astype(np.float32) - low) / (high - low)
    return np.ascontiguousarray(np.clip(np.nan_to_num(values, nan=0), 0, 1).transpose(2, 0, 1))


# A frame is how an image is placed in the network's input, of that size: the part `kept` of an
# image of the size `whole` becomes the part `there` of the input. Parts are left, top, right and
# bottom.
Frame = collections.namedtuple("Frame", "size whole kept there")


def frame_of(size, fit, width, height):
    def scaled(a, times, by, limit):
        return min(limit, max((a * times + by // 2) // by, 1))

    kept, there = (width, height), size
    if fit == "pad":
        there = scaled(width, size[1], height, size[0]), scaled(height, size[0], width, size[1])
    if fit == "crop":
        kept = scaled(height, size[0], size[1], width), scaled(width, size[1], size[0], height)
    (x, y), (left, top) = [((a[0] - b[0]) // 2, (a[1] - b[1]) // 2) for a, b in (((width, height), kept), (size, there))]
    return Frame(tuple(size), (width, height), (x, y, x + kept[0], y + kept[1]), (left, top, left + there[0], top + there[1]))


def placed(region, frame):
    """Return the mask of the region for the part of the input that has the image."""
    runs = [int(run) for run in region["runs"].split()]
    mask = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(region["height"], region["width"])
    (x0, y0, x1, y1), (left, top, right, bottom) = frame.kept, frame.there

    def centres(first, kept, there, whole, n):
        at = (2 * there * first + (2 * np.arange(there, dtype=np.int64) + 1) * kept) * n // (2 * there * whole)
        return np.minimum(at, n - 1)

    rows = centres(y0, y1 - y0, bottom - top, frame.whole[1], region["height"])
    columns = centres(x0, x1 - x0, right - left, frame.whole[0], region["width"])
    return mask[rows[:, None], columns[None, :]]


def open_dicom(path):
    """Return a DICOM file and the number of its frames."""
    try:
        import pydicom
        import pydicom.pixels
    except ImportError:
        raise Problem("DICOM images need pydicom 3: pip install pydicom, or export PNG with the window that shows what matters")
    with without_patient():
        data = pydicom.dcmread(path, force=True)
        frames = max(int(data.get("NumberOfFrames") or 1), 1)
    if frames > MAX_FRAMES:
        raise Problem(f"it has {frames} frames, at most {MAX_FRAMES} are read: divide the file")
    return data, frames


@contextlib.contextmanager
def without_patient():
    """Replace errors of pydicom, whose text can have attributes of the patient."""
    try:
        yield
    except (Problem, FileNotFoundError):
        raise
    except Exception:
        raise Problem("the DICOM image cannot be read: convert it to an uncompressed file (Explicit VR Little Endian), or install pylibjpeg with its plugins") from None


def read_dicom(data, frame, deep=False):
    """Return a frame of a DICOM file with 8 bits per channel, or as values if it is deep.

    Deep values of a grey image of more than 8 bits are height×width×3 numbers of 16 bits. Grey
    values are rescaled, and those within the file's window are spread over 0 to 65535, of which
    the high byte is used. Without a window, all values that the stored bits can have are. Look-up
    tables replace the rescale and the window.
    """
    from pydicom.pixels import apply_color_lut, pixel_array

    with without_patient():
        if int(data.BitsAllocated) == 1 and int(data.get("NumberOfFrames") or 1) > 1:
            values = data.pixel_array[frame]  # pydicom 3.0 cannot decode a single frame that begins within a byte
        else:
            values = pixel_array(data, index=frame)
        stored, kind = int(data.BitsStored), data.PhotometricInterpretation
        if int(data.HighBit) != stored - 1:
            raise Problem("its high bit is not the last of its stored bits: convert it to an uncompressed file (Explicit VR Little Endian)")
        if kind == "PALETTE COLOR":
            values = apply_color_lut(values, data)
            stored = int(data.RedPaletteColorLookupTableDescriptor[2])
        if values.ndim == 3:
            return Image.fromarray((values >> max(stored - 8, 0)).astype(np.uint8))
        with np.errstate(all="ignore"):
            shown = shown_grey(data, frame, values, stored)
    if not np.isfinite(shown).all():
        raise Problem("its window or its rescale slope makes all values equal: export it with another window")
    grey = np.floor(np.clip(shown, 0, 1) * 65535 + 0.5).astype(np.uint16)
    grey = 65535 - grey if kind == "MONOCHROME1" else grey
    if deep and stored > 8:
        return np.stack([grey.astype(np.float32)] * 3, axis=2)
    grey = grey >> 8
    return Image.fromarray(np.stack([grey.astype(np.uint8)] * 3, axis=2))


def shown_grey(data, frame, values, stored):
    """Return the brightness of grey values, 0 to 1."""
    modality, voi, number = transformations(data, frame)
    signed = bool(int(data.PixelRepresentation))
    if modality:
        values, highest = look_up(data, modality, values, signed)
        ends = 0, highest
    else:
        slope, intercept = number.get("RescaleSlope", 1), number.get("RescaleIntercept", 0)
        lowest, highest = (-(1 << stored - 1), (1 << stored - 1) - 1) if signed else (0, (1 << stored) - 1)
        values = values.astype(np.float64) * slope + intercept
        ends = sorted(end * slope + intercept for end in (lowest, highest))
    if voi:
        values, highest = look_up(data, voi, np.floor(values + 0.5).astype(np.int64), signed or ends[0] < 0)
        return values / highest
    if "WindowCenter" not in number or "WindowWidth" not in number:
        return (values - ends[0]) / (ends[1] - ends[0])
    centre, width, function = number["WindowCenter"], number["WindowWidth"], number.get("VOILUTFunction", "LINEAR")
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - centre) / width))
    if function != "LINEAR_EXACT":
        centre, width = centre - 0.5, width - 1
    return np.where(values <= centre - width / 2, 0, np.where(values > centre + width / 2, 1, (values - centre) / width + 0.5))


def transformations(data, frame):
    """Return the modality look-up table, that of the brightness, and the numbers of the rescale and the window of a frame.

    Those of the frame replace those of all frames, which replace those of the file. A table is
    None if there is none, or if a rescale or a window replaces it.
    """
    first = lambda place, name: next(iter(place.get(name) or []), None)
    modality, voi, number = first(data, "ModalityLUTSequence"), first(data, "VOILUTSequence"), {}
    groups = [first(data, "SharedFunctionalGroupsSequence"), *list(data.get("PerFrameFunctionalGroupsSequence") or [])[frame:frame + 1]]
    places = [data] + [first(group, name) for group in groups if group is not None for name in ("FrameVOILUTSequence", "PixelValueTransformationSequence")]
    for place in places:
        if place is None:
            continue
        if place is not data and "WindowCenter" in place:
            voi = None
        if place is not data and "RescaleSlope" in place:
            modality = None
        voi = voi if place is data else first(place, "VOILUTSequence") or voi
        for name in "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth":
            value = place.get(name)
            value = value if isinstance(value, (int, float, str, type(None))) else next(iter(value), None)
            if value not in (None, ""):
                number[name] = float(value)
        if place.get("VOILUTFunction"):
            number["VOILUTFunction"] = str(place.VOILUTFunction).upper()
    return modality, voi, number


def look_up(data, table, values, signed):
    """Return the entries of a look-up table for values, and the highest that an entry can be."""
    count, first, bits = (int(v) for v in table.LUTDescriptor)
    count = count % 65536 or 65536
    implicit, little = data.original_encoding
    if implicit:  # the value representation is not in the file
        first = first % 65536
        first -= 65536 if signed and first >= 32768 else 0
    entries = table.LUTData
    if isinstance(entries, bytes):
        entries = np.frombuffer(entries, ("<u2" if little else ">u2") if len(entries) >= 2 * count else "u1")
    entries = np.atleast_1d(np.asarray(entries, dtype=np.int64))
    if not 8 <= bits <= 16 or len(entries) < count:
        raise Problem("a look-up table of the DICOM file is damaged: export it with a window")
    highest = (1 << bits) - 1
    return np.minimum(entries[np.clip(values.astype(np.int64) - first, 0, count - 1)], highest).astype(np.float64), highest


def to_rgb(image, path, max_value, deep=False):
    """Return the image with 8 bits per channel, or height×width×3 values if deep and it has more.

    Values of 16 bits are multiplied by 256/(max_value+1), rounded down, at most 255. Without
    max_value, that is their high byte. Pillow would clip grey values above 255 to white.
    """
    rawmode = rawmode_of(image.tile[0]) if image.tile else ""
    scaled = isinstance(max_value, (int, float)) and 1 <= max_value < 65535
    if deep and image.mode == "F" and image.format == "TIFF":
        return np.stack([np.asarray(image)] * 3, axis=2)
    if image.mode in ("I", "F") and not rawmode.startswith("I;1") or rawmode.startswith("I;") and rawmode.endswith("S"):
        raise Problem("its pixels have 32 bits or a sign: export it with 8 or 16 bits")
    if image.format == "TIFF" and image.tag_v2.get(284) == 2 and ";16" not in rawmode and max(image.tag_v2.get(258, (1,))) > 8:
        raise Problem("it is a TIFF that stores each channel of 16 bits separately: export it as a PNG")
    grey = image.mode.startswith("I")
    if grey:
        values = np.stack([np.asarray(image)] * 3, axis=2)
    elif (scaled or deep) and rawmode.startswith(("RGB", "LA")) and ";16" in rawmode:
        values = colours_of_16_bits(path, rawmode)
    else:
        return image.convert("RGB")
    if deep:
        values = values.astype(np.float32)
        if grey and image.format == "TIFF" and image.tag_v2.get(262) == 0:  # 0 is white
            values = 65535 - values
        if rawmode.startswith("RGBa"):  # the colours are multiplied by alpha
            alpha = values[:, :, 3:]
            values = np.where(alpha == 0, 0, np.minimum(values[:, :, :3] * 65535 / np.maximum(alpha, 1), 65535))
        return values[:, :, :3]
    values = values.astype(np.uint32)
    rgb = np.minimum(values[:, :, :3] * 256 // (int(max_value) + 1 if scaled else 65536), 255)
    if grey and image.format == "TIFF" and image.tag_v2.get(262) == 0:  # 0 is white
        rgb = 255 - rgb
    if rawmode.startswith("RGBa"):  # the colours are multiplied by alpha
        alpha = values[:, :, 3:] >> 8
        rgb = np.where(alpha == 0, 0, np.minimum(rgb * 255 // np.maximum(alpha, 1), 255))
    result = Image.fromarray(rgb.astype(np.uint8))
    result.info = dict(image.info)  # with the EXIF data
    return result


def colours_of_16_bits(path, rawmode):
    """Return height×width×channels values of an image whose colours have 16 bits.

    Pillow keeps the high bytes only. It decodes the low bytes if it is told the other byte
    order.
    """
    if rawmode == "LA;16B":  # as four bytes: grey, then alpha
        grey = decoded_as(path, "RGBA")
        return np.stack([grey[:, :, 0] << 8 | grey[:, :, 1]] * 3, axis=2)
    native = "L" if sys.byteorder == "little" else "B"
    layout, order = rawmode[:-1].replace("RGBa", "RGBA"), rawmode[-1].replace("N", native)
    return decoded_as(path, layout + order) << 8 | decoded_as(path, layout + ("B" if order == "L" else "L"))


def decoded_as(path, rawmode):
    """Return the bytes of an image that is decoded as if the file had another pixel format."""
    with Image.open(path, formats=list(FORMATS)) as image:
        for i, tile in enumerate(image.tile):  # a tuple or, since Pillow 11, a named tuple
            arguments = rawmode if isinstance(tile[3], str) else (rawmode, *tile[3][1:])
            image.tile[i] = getattr(type(tile), "_make", tuple)((*tile[:3], arguments))
        image.load()
        return np.asarray(image).astype(np.uint32)


def rawmode_of(tile):
    """Return the pixel format in the file, such as "RGB;16B", or an empty string."""
    first = tile[3][0] if isinstance(tile[3], tuple) and tile[3] else tile[3]
    return first if isinstance(first, str) else ""


def each_image(paths):
    """Yield the name, the path, the opened DICOM file or None, and the number of the frame of each image, or an error in place of the file.

    A DICOM file of several frames has several images, whose names end with # and the number of
    the frame, from 1.
    """
    for path in paths:
        opened, frames = None, 1
        try:
            if is_dicom(path):
                opened, frames = open_dicom(path)
        except Exception as problem:
            opened = problem
        for frame in range(frames):
            yield path if frames == 1 else f"{path}#{frame + 1}", path, opened, frame


def judge(model, decision, paths, with_regions=False):
    """Yield the result of each image, with the keys of the service's response."""
    measure, threshold, class_names, preprocessing = decision
    with_regions = with_regions and measure != "mse"
    images = each_image(paths)
    if preprocessing.get("tiles"):
        for name, path, opened, number in images:
            result = {"file": name}
            try:
                if isinstance(opened, Exception):
                    raise opened
                plain, other, found = judge_tiles(model, path, preprocessing, threshold, with_regions, opened, number)
                complete(result, plain, plain if measure == "mse" else other, decision)
                if found is not None:
                    result["regions"] = found
            except Exception as problem:  # Pillow raises many types
                result["error"] = str(problem) or repr(problem)
            yield result
        return
    while batch := list(itertools.islice(images, BATCH)):
        results, tensors, frames = [], [], []
        for name, path, opened, number in batch:
            results.append({"file": name})
            try:
                if isinstance(opened, Exception):
                    raise opened
                tensor, frame = prepare(path, model.size, preprocessing, opened, number)
                tensors.append(tensor)
                frames.append(frame)
            except Exception as problem:  # Pillow raises many types
                results[-1]["error"] = str(problem) or repr(problem)
        mse, other, maps = model.measure(np.stack(tensors), with_regions) if tensors else ([], [], None)
        scores = iter(zip(mse, mse if measure == "mse" else other, [None] * len(mse) if maps is None else maps, frames))
        for result in results:
            if "error" not in result:
                plain, score, anomaly_map, frame = next(scores)
                complete(result, plain, score, decision)
                if anomaly_map is not None:
                    result["regions"] = regions(anomaly_map, threshold, frame)
            yield result


def complete(result, plain, score, decision):
    """Add the verdict to a result."""
    measure, threshold, class_names, _ = decision
    result.update(
        reconstruction_error=float(score), anomaly_score=float(score), threshold=threshold,
        is_anomaly=float(score) > threshold, class_names=class_names, measure=measure, mse=float(plain),
    )


def regions(anomaly_map, threshold, frame):
    """Return the 4-connected parts of the map above the threshold, in descending order of their scores.

    The boxes are in pixels of the original image, from the top left.
    """
    height, width = anomaly_map.shape
    (x0, y0, x1, y1), (there_x0, there_y0, there_x1, there_y1) = frame.kept, frame.there

    def original(first, end, kept, there):
        first, end = (min(max(edge, there[0]), there[1]) - there[0] for edge in (first, end))
        length, pixels = there[1] - there[0], kept[1] - kept[0]
        return kept[0] + first * pixels // length, kept[0] + -(-end * pixels // length)

    above = anomaly_map.astype(np.float64) > threshold
    found = []
    for start in zip(*np.nonzero(above)):
        if not above[start]:
            continue
        above[start] = False
        part = [start]
        for y, x in part:  # the list grows
            for next_y, next_x in (y, x - 1), (y, x + 1), (y - 1, x), (y + 1, x):
                if 0 <= next_y < height and 0 <= next_x < width and above[next_y, next_x]:
                    above[next_y, next_x] = False
                    part.append((next_y, next_x))
        ys, xs = np.array(part).T
        left, right = original(int(xs.min()), int(xs.max()) + 1, (x0, x1), (there_x0, there_x1))
        top, bottom = original(int(ys.min()), int(ys.max()) + 1, (y0, y1), (there_y0, there_y1))
        found.append({"x": left, "y": top, "width": right - left, "height": bottom - top, "score": float(anomaly_map[ys, xs].max())})
    return sorted(found, key=lambda region: -region["score"])[:MAX_REGIONS]


def line(result):
    if "error" in result:
        return f"{result['file']}: cannot be judged: {result['error']}"
    verdict = "ANOMALY" if result["is_anomaly"] else "normal"
    return f"{result['file']}: {verdict} (error {result['reconstruction_error']:.6f}, threshold {result['threshold']:.6f})"


def report(result):
    """Return the text for a person about one image."""
    anomaly = result["is_anomaly"]
    lines = [
        f"File:         {result['file']}",
        f"Verdict:      {'ANOMALY: the score is above' if anomaly else 'normal: the score is not above'} the threshold",
        f"Score:        {result['reconstruction_error']:.6g} ({result['measure']})",
        f"Threshold:    {result['threshold']:.6g}",
        f"Class names:  {', '.join(map(str, result['class_names']))}",
    ]
    if "regions" in result:
        count = len(result["regions"])
        lines.append(f"Regions:      {count} above the threshold; boxes in pixels from the top left" if count else "Regions:      none above the threshold")
        lines += ["  x {x}, y {y}, width {width}, height {height}: score {score:.6g}".format(**region) for region in result["regions"]]
    return "\n".join(lines)


def load_all(model_path, metadata_path):
    """Return the model and its decision. A Problem names the file that it is about."""
    using = model_path
    try:
        model = load(model_path)
        metadata = model.metadata
        if metadata_path:
            using = metadata_path
            metadata = json.loads(Path(metadata_path).read_text(encoding="utf-8-sig"))
        if metadata is None:
            raise Problem("it has no metadata: pass its metadata.json with --metadata")
        return model, decision_of(metadata, model)
    except Exception as problem:
        raise Problem(f"{using}: {problem}") from problem


def detect_anomaly(image_path, model_path=None, metadata_path=None):
    """Return the result of one image: the keys of the service's response, and regions if the model has an anomaly map.

    Of a DICOM file of several frames, it is that of the frame with the highest score, with the
    number of that frame and the results of all.

    Without model_path, the model is the autoencoder.onnx beside this file. Without
    metadata_path, the decision is the model's own. An exception names what could not be read.
    """
    model, decision = load_all(str(model_path or MODEL), metadata_path)
    results = list(judge(model, decision, [str(image_path)], with_regions=True))
    for result in results:
        if "error" in result:
            raise Problem(line(result))
    if len(results) == 1:
        return results[0]
    highest = max(range(len(results)), key=lambda i: results[i]["reconstruction_error"])
    frames = [{"frame": i + 1, "reconstruction_error": r["reconstruction_error"], "mse": r["mse"], "is_anomaly": r["is_anomaly"]} for i, r in enumerate(results)]
    return {**results[highest], "file": str(image_path), "frame": highest + 1, "frames": frames}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="an image, a folder or a pattern; without any, the one image in the current folder")
    parser.add_argument("--model", "--model_path", default=str(MODEL), help="autoencoder.onnx, or a .pt whose anomaly score is the mean squared error")
    parser.add_argument("--metadata", "--metadata_path", help="a metadata.json that replaces the model's metadata")
    parser.add_argument("--json", action="store_true", help="print one JSON array")
    arguments = parser.parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")
    images = arguments.images
    if [Path(p).suffix.lower() for p in images[1:]] in ([".pt"], [".onnx"], [".pt", ".json"], [".onnx", ".json"]):
        images, arguments.model, arguments.metadata = images[:1], images[1], (images[2:] or [arguments.metadata])[0]
    try:
        if not images:
            return judge_only_image(arguments)
        return judge_images(images, arguments)
    except Exception as problem:
        print(problem if isinstance(problem, Problem) else f"{arguments.model}: {problem}", file=sys.stderr)
        return 2


def judge_only_image(arguments):
    model, decision = load_all(arguments.model, arguments.metadata)
    results = list(judge(model, decision, [only_image()], with_regions=not arguments.json))
    if arguments.json:
        print(json.dumps(results, indent=2))
    for result in results:
        if "error" in result:
            raise Problem(line(result))
    if not arguments.json:
        print("\n\n".join(map(report, results)))
    return 0


def judge_images(images, arguments):
    paths, passed_over = find(images)
    if passed_over:
        what = "1 file in the folders is not an image and was" if len(passed_over) == 1 else f"{len(passed_over)} files in the folders are not images and were"
        print(f"{what} passed over: " + "; ".join(filter(None, [listing(passed_over), refusal(passed_over)])), file=sys.stderr)
    if not paths:
        print("no images in " + ", ".join(images), file=sys.stderr)
    model, decision = load_all(arguments.model, arguments.metadata)
    results = []
    for result in judge(model, decision, paths):
        results.append(result)
        if not arguments.json:
            print(line(result), flush=True)
    if arguments.json:
        print(json.dumps(results, indent=2))
    if not results or any("error" in r for r in results):
        return 2
    return 1 if any(r["is_anomaly"] for r in results) else 0


if __name__ == "__main__":
    sys.exit(main())
