package exporter

import (
	"archive/zip"
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/deepmed/anomaly/internal/backbone"
	"github.com/deepmed/anomaly/internal/detectability"
	"github.com/deepmed/anomaly/models"
)

// BundleFile is the file name of the zip that a training returns.
const BundleFile = "anomaly_detection_model.zip"

// DetectabilityFile is the plot in the zip of the share of synthetic anomalies found. The
// zip has it if the model's metadata has models.Detectability.
const DetectabilityFile = "detectability.svg"

// LicenseFile is the license of the backbone. The zip has it if the ONNX files contain the
// backbone's weights.
const LicenseFile = "LICENSE-backbone.txt"

var (
	//go:embed files/predict.py
	predictScript []byte
	//go:embed files/requirements.txt
	requirements []byte
)

// WriteBundle writes the zip of a trained model: the checkpoint, both ONNX files, the
// metadata with the SHA-256 of each, a README and a script that scores images without a
// server, and, where they apply, LicenseFile and DetectabilityFile. Equal models result in
// equal bytes.
func WriteBundle(w io.Writer, m *models.Model) error {
	var checkpoint bytes.Buffer
	if err := WriteCheckpoint(&checkpoint, m); err != nil {
		return err
	}
	onnx, err := InferenceModel(m)
	if err != nil {
		return err
	}
	image, err := ImageModel(m)
	if err != nil {
		return err
	}
	meta := m.Metadata
	meta.Files = map[string]string{
		models.CheckpointFile: models.Identity(checkpoint.Bytes()),
		models.ONNXFile:       models.Identity(onnx),
		models.ImageONNXFile:  models.Identity(image),
	}
	metadata, err := json.MarshalIndent(meta, "", "  ")
	if err != nil {
		return fmt.Errorf("exporter: metadata: %w", err)
	}
	readme, err := bundleReadme(m)
	if err != nil {
		return err
	}
	type file struct {
		name   string
		data   []byte
		method uint16
	}
	files := []file{
		{models.CheckpointFile, checkpoint.Bytes(), zip.Store}, // weights hardly compress
		{models.ONNXFile, onnx, zip.Store},
		{models.ImageONNXFile, image, zip.Store},
		{models.MetadataFile, append(metadata, '\n'), zip.Deflate},
		{"predict.py", predictScript, zip.Deflate},
		{"requirements.txt", requirements, zip.Deflate},
		{"README.md", readme, zip.Deflate},
	}
	if models.HasPatches(m.Reference) {
		files = append(files, file{LicenseFile, backbone.License(), zip.Deflate})
	}
	if d := m.Metadata.Detectability; d != nil {
		svg, err := detectability.SVG(d)
		if err != nil {
			return fmt.Errorf("exporter: %s: %w", DetectabilityFile, err)
		}
		files = append(files, file{DetectabilityFile, svg, zip.Deflate})
	}
	z := zip.NewWriter(w)
	for _, f := range files {
		h := &zip.FileHeader{Name: f.name, Method: f.method, Modified: bundleTime}
		h.SetMode(0o644)
		out, err := z.CreateHeader(h)
		if err == nil {
			_, err = out.Write(f.data)
		}
		if err != nil {
			return fmt.Errorf("exporter: writing %s: %w", f.name, err)
		}
	}
	if err := z.Close(); err != nil {
		return fmt.Errorf("exporter: writing the zip: %w", err)
	}
	return nil
}

// bundleTime is the modification time of every file in the zip. It is fixed so that equal
// models result in equal bytes; 1980 is the first year that a zip can hold.
var bundleTime = time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)
