#!/bin/sh
# Makes testdata/dicom again: DICOM files of all transfer syntaxes and photometric
# interpretations that are read, and the pixels that pydicom reads from them. Installs the
# packages of bench/dicom/requirements.txt in .cache/venv-dicom, unless DICOM_PYTHON names
# a Python that has them. Requires the programs opj_compress (OpenJPEG) and dcmcjpeg
# (DCMTK).
set -eu
cd "$(dirname "$0")/.."
want=bench/dicom/requirements.txt
if [ -z "${DICOM_PYTHON:-}" ]; then
	DICOM_PYTHON=.cache/venv-dicom/bin/python
	if ! cmp -s "$want" .cache/venv-dicom/ready; then
		rm -rf .cache/venv-dicom
		mkdir -p .cache
		python3 -m venv .cache/venv-dicom
		"$DICOM_PYTHON" -m pip install --quiet --only-binary=:all: -r "$want"
		cp "$want" .cache/venv-dicom/ready
	fi
fi
"$DICOM_PYTHON" bench/dicom/make.py testdata/dicom
