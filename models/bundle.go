package models

import (
	"fmt"
	"strings"
)

// readBundle reads the zip that a training writes: autoencoder.pt, or
// autoencoder.onnx when that is missing, and metadata.json, which overrides the
// metadata in the model file.
func readBundle(a *archive, lim Limits) (contents, error) {
	file, onnxFile, metadataFile, err := bundleFiles(a)
	if err != nil {
		return contents{}, err
	}
	var data []byte
	var c contents
	switch {
	case file != "":
		if data, err = a.read(file, lim.MaxBytes); err != nil {
			return contents{}, err
		}
		c, err = readInnerCheckpoint(data, a.budget, lim)
	case onnxFile != "":
		file = onnxFile
		if data, err = a.read(file, lim.MaxBytes); err != nil {
			return contents{}, err
		}
		c, err = readONNX(data, lim)
	default:
		return contents{}, fmt.Errorf("%w: a zip with neither %s nor %s, nor %s as in a PyTorch checkpoint",
			ErrFormat, CheckpointFile, ONNXFile, "<name>/"+pickleFile)
	}
	if err != nil {
		return contents{}, err
	}
	if metadataFile == "" {
		return c, nil
	}
	raw, err := a.read(metadataFile, MaxMetadataBytes)
	if err != nil {
		return contents{}, err
	}
	md, err := ParseMetadata(raw)
	if err != nil {
		return contents{}, err
	}
	// A threshold is valid only for the weights it was computed with.
	base := file[strings.LastIndexByte(file, '/')+1:]
	if want, ok := md.Files[base]; ok && !strings.EqualFold(want, Identity(data)) {
		return contents{}, fmt.Errorf("%w: %s was written for another %s, with SHA-256 %.64s", ErrMetadata, MetadataFile, base, want)
	}
	c.metadata.json = raw
	return c, nil
}

// bundleFiles returns the entry names of the three files, "" for a missing one.
func bundleFiles(a *archive) (checkpointFile, onnxFile, metadataFile string, err error) {
	if checkpointFile, err = a.find(CheckpointFile); err != nil {
		return "", "", "", err
	}
	if onnxFile, err = a.find(ONNXFile); err != nil {
		return "", "", "", err
	}
	metadataFile, err = a.find(MetadataFile)
	return checkpointFile, onnxFile, metadataFile, err
}

// readInnerCheckpoint reads the checkpoint inside a zip. It does not accept another
// bundle there, which bounds the nesting.
func readInnerCheckpoint(data []byte, budget *int64, lim Limits) (contents, error) {
	if !isZip(data) {
		return contents{}, fmt.Errorf("%w: the zip's %s is not a PyTorch zip checkpoint", ErrFormat, CheckpointFile)
	}
	inner, err := openArchive(data, budget)
	if err != nil {
		return contents{}, err
	}
	root, err := checkpointRoot(inner)
	if err == nil && root == "" {
		err = fmt.Errorf("%w: the zip's %s has no <name>/%s", ErrFormat, CheckpointFile, pickleFile)
	}
	if err != nil {
		return contents{}, err
	}
	return readCheckpoint(inner, root, lim)
}
