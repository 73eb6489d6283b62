"""Compress a DICOM file by lossless JPEG with GDCM: lossless_jpeg.py IN OUT SV1|14.

A program of its own, because GDCM's library and zlib of Python exclude each other in one
process.
"""
import sys

import gdcm

source, target, process = sys.argv[1:]
syntax = {"SV1": gdcm.TransferSyntax.JPEGLosslessProcess14_1, "14": gdcm.TransferSyntax.JPEGLosslessProcess14}[process]
reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
reader.SetFileName(source)
assert reader.Read()
change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
change.SetInput(reader.GetImage())
assert change.Change()
writer.SetFileName(target)
writer.SetFile(reader.GetFile())
writer.SetImage(change.GetOutput())
assert writer.Write()
