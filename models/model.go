package models

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
)

// Errors of reading a model file. Each is wrapped with one sentence's worth of
// what was expected and what was found.
var (
	// ErrFormat is returned when bytes are none of the formats read here, or
	// are damaged: not a PyTorch zip checkpoint, an ONNX file or a zip with one.
	ErrFormat = errors.New("not a readable model file")
	// ErrUnsafe is returned when a checkpoint's pickle asks for anything that
	// is not plain data and tensors.
	ErrUnsafe = errors.New("the model file holds more than plain data and tensors")
	// ErrTooLarge is returned when a file asks for more memory than allowed.
	ErrTooLarge = errors.New("the model file is too large")
)

// Format is a file format a model is read from.
type Format string

// The formats that Read knows.
const (
	FormatCheckpoint Format = "pt"
	FormatONNX       Format = "onnx"
	FormatBundle     Format = "zip"
)

// File names inside the zip that a training gives.
const (
	CheckpointFile = "autoencoder.pt"
	ONNXFile       = "autoencoder.onnx"
	// ImageONNXFile takes the decoded image itself and decides.
	ImageONNXFile = "autoencoder_image.onnx"
	MetadataFile  = "metadata.json"
)

// Model is a model read from a file, checked and complete: its weights fit its
// architecture and its metadata can base a verdict.
type Model struct {
	Architecture Architecture
	// Weights are in the order of Architecture.Parameters.
	Weights StateDict
	// ImageSize is the side of the square the network sees, in pixels, a
	// multiple of Architecture.Stride.
	ImageSize int
	// Reference holds the tensors of GaborParameters of a model that decides
	// by MeasureBandMahalanobis, in that order, and is nil for any other.
	Reference StateDict
	// Metadata is what the file says of its decision and training. Where it
	// says nothing, Threshold is DefaultThreshold.
	Metadata Metadata
	// Format is what the model was read from, SHA256 the identity of those
	// bytes in hexadecimal.
	Format Format
	SHA256 string
}

// Identity is the SHA-256 of a model file's bytes, in hexadecimal: the name by
// which a model is known.
func Identity(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
