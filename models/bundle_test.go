package models

import (
	"archive/zip"
	"encoding/binary"
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestRead_AcceptsTrainingZip(t *testing.T) {
	pt := zipOf(tinyEntries(binary.LittleEndian, dict(str("image_size"), num(64), str("threshold"), "G\x3f\xe0\x00\x00\x00\x00\x00\x00"))...)
	onnx := tinyONNX(nil)
	meta := []byte(`{"threshold":0.125,"image_size":32,"class_names":["x"],"files":{"autoencoder.pt":"` + strings.ToUpper(Identity(pt)) + `"}}`)
	for what, c := range map[string]struct {
		entries   []entry
		threshold float64
		size      int
	}{
		"all three, metadata.json overrides": {[]entry{{Name: CheckpointFile, Data: pt}, {Name: ONNXFile, Data: onnx}, {Name: MetadataFile, Data: meta, Method: zip.Deflate}}, 0.125, 32},
		"no metadata: the checkpoint's":      {[]entry{{Name: CheckpointFile, Data: pt, Method: zip.Deflate}}, 0.5, 64},
		"ONNX only":                          {[]entry{{Name: ONNXFile, Data: onnx}}, DefaultThreshold, 256},
		"repacked in a folder":               {[]entry{{Name: "model/"}, {Name: "model/autoencoder.pt", Data: pt}, {Name: "__MACOSX/model/._autoencoder.pt", Data: []byte("x")}}, 0.5, 64},
		"a folder named as a checkpoint":     {[]entry{{Name: "autoencoder.pt/"}, {Name: "autoencoder.pt/autoencoder.onnx", Data: onnx}, {Name: "metadata.json", Data: meta}}, 0.125, 32},
	} {
		data := zipOf(c.entries...)
		m, err := Read(data, Limits{})
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		if m.Metadata.Threshold != c.threshold || m.ImageSize != c.size || m.Format != FormatBundle || m.SHA256 != Identity(data) {
			t.Errorf("%s: %s, image size %d, %+v", what, m.Format, m.ImageSize, m.Metadata)
		}
		if !reflect.DeepEqual(m.Architecture, tiny) {
			t.Errorf("%s: a %s network", what, m.Architecture)
		}
	}
}

// MaxUnpacked bounds the sum over the outer and the inner zip.
func TestRead_CountsNestedZipsTowardsUnpackedLimit(t *testing.T) {
	pt := zipOf(tinyEntries(binary.LittleEndian, tinyConfig)...)
	data := zipOf(entry{Name: CheckpointFile, Data: pt})
	if _, err := Read(data, Limits{MaxUnpacked: int64(len(pt)) + 100}); !errors.Is(err, ErrTooLarge) {
		t.Error(err)
	}
	if _, err := Read(data, Limits{MaxUnpacked: 2 * int64(len(pt))}); err != nil {
		t.Error(err)
	}
}
