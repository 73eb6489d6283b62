package models

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
)

// Errors of reading a model file. Each is wrapped with a short description of what
// was expected and what was found.
var (
	// ErrFormat is returned when a file is damaged, or is none of a PyTorch zip
	// checkpoint, an ONNX file and a zip with either.
	ErrFormat = errors.New("not a readable model file")
	// ErrUnsafe is returned when a checkpoint's pickle contains anything other than
	// plain data and tensors.
	ErrUnsafe = errors.New("the model file holds more than plain data and tensors")
	// ErrTooLarge is returned when a file exceeds one of the Limits.
	ErrTooLarge = errors.New("the model file is too large")
)

// Format is the format of a model file.
type Format string

// The formats that Read accepts.
const (
	FormatCheckpoint Format = "pt"
	FormatONNX       Format = "onnx"
	FormatBundle     Format = "zip"
)

// File names inside the zip that a training writes.
const (
	CheckpointFile = "autoencoder.pt"
	ONNXFile       = "autoencoder.onnx"
	// ImageONNXFile is the network whose input is a decoded image of any size and
	// whose outputs include the verdict.
	ImageONNXFile = "autoencoder_image.onnx"
	MetadataFile  = "metadata.json"
)

// Model is a complete model: its weights fit its architecture, and its metadata and
// reference statistics are sufficient for a verdict.
type Model struct {
	Architecture Architecture
	// Weights are in the order of Architecture.Parameters.
	Weights StateDict
	// ImageSize is the side of the network's square input, in pixels. It is a
	// multiple of Architecture.Stride. It is 0 if the input is not square; see Input.
	ImageSize int
	// Reference holds the reference statistics in file order: the tensors of
	// PatchParameters for MeasurePatchMahalanobis, of GaborParameters and then, with
	// defect heads, GaborHeadsParameters for MeasureBandMahalanobis, and nil for
	// MeasureMSE.
	Reference StateDict
	// Metadata describes decision and training. Threshold is DefaultThreshold when
	// the file has none.
	Metadata Metadata
	// Format is the format of the file that the model was read from, SHA256 its
	// Identity.
	Format Format
	SHA256 string
}

// Input returns the width and height of the network's input.
func (m *Model) Input() Size {
	if p := m.Metadata.Preprocessing; m.ImageSize == 0 && p != nil {
		return Size{p.Width, p.Height}
	}
	return Square(m.ImageSize)
}

// Masked reports whether parts of the network's input may be neither learned from nor
// judged; see Preprocessing.Masked.
func (m *Model) Masked() bool { return m.Metadata.Preprocessing.Masked() }

// Identity returns the SHA-256 of a model file's bytes in hexadecimal, which
// identifies the model.
func Identity(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
