package models

import (
	"archive/zip"
	"encoding/binary"
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestReadTakesTheZipOfATraining(t *testing.T) {
	pt := zipOf(t, tinyEntries(binary.LittleEndian, dict(str("image_size"), num(64), str("threshold"), "G\x3f\xe0\x00\x00\x00\x00\x00\x00"))...)
	onnx := tinyONNX(t, nil)
	meta := []byte(`{"threshold":0.125,"image_size":32,"class_names":["x"],"files":{"autoencoder.pt":"` + strings.ToUpper(Identity(pt)) + `"}}`)
	for what, c := range map[string]struct {
		entries   []entry
		threshold float64
		size      int
	}{
		"all three: metadata.json wins":  {[]entry{{name: CheckpointFile, data: pt}, {name: ONNXFile, data: onnx}, {name: MetadataFile, data: meta, method: zip.Deflate}}, 0.125, 32},
		"no metadata: the checkpoint's":  {[]entry{{name: CheckpointFile, data: pt, method: zip.Deflate}}, 0.5, 64},
		"ONNX only":                      {[]entry{{name: ONNXFile, data: onnx}}, DefaultThreshold, 256},
		"packed again, in a folder":      {[]entry{{name: "model/"}, {name: "model/autoencoder.pt", data: pt}, {name: "__MACOSX/model/._autoencoder.pt", data: []byte("x")}}, 0.5, 64},
		"a folder named as a checkpoint": {[]entry{{name: "autoencoder.pt/"}, {name: "autoencoder.pt/autoencoder.onnx", data: onnx}, {name: "metadata.json", data: meta}}, 0.125, 32},
	} {
		data := zipOf(t, c.entries...)
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

func TestReadRefusesABadZipOfATraining(t *testing.T) {
	pt := zipOf(t, tinyEntries(binary.LittleEndian, tinyConfig)...)
	for what, c := range map[string]struct {
		entries []entry
		want    error
	}{
		"metadata only":            {[]entry{{name: MetadataFile, data: []byte(`{"threshold":1}`)}}, ErrFormat},
		"two checkpoints":          {[]entry{{name: "a/autoencoder.pt", data: pt}, {name: "b/autoencoder.pt", data: pt}}, ErrFormat},
		"a checkpoint of nothing":  {[]entry{{name: CheckpointFile}}, ErrFormat},
		"a checkpoint cut short":   {[]entry{{name: CheckpointFile, data: pt[:300]}}, ErrFormat},
		"a zip in a zip in a zip":  {[]entry{{name: CheckpointFile, data: zipOf(t, entry{name: CheckpointFile, data: pt})}}, ErrFormat},
		"metadata with nothing":    {[]entry{{name: CheckpointFile, data: pt}, {name: MetadataFile, data: []byte(`{}`)}}, ErrMetadata},
		"metadata of another file": {[]entry{{name: CheckpointFile, data: pt}, {name: MetadataFile, data: []byte(`{"threshold":1,"files":{"autoencoder.pt":"00"}}`)}}, ErrMetadata},
		"an unknown measure":       {[]entry{{name: CheckpointFile, data: pt}, {name: MetadataFile, data: []byte(`{"threshold":1,"decision":{"measure":"vibes","threshold":1}}`)}}, ErrMetadata},
		"metadata that is a bomb":  {[]entry{{name: CheckpointFile, data: pt}, {name: MetadataFile, data: make([]byte, 5<<20), method: zip.Deflate}}, ErrTooLarge},
		"a checkpoint that's evil": {[]entry{{name: CheckpointFile, data: zipOf(t, entry{name: "m/data.pkl", data: asm(name("os", "system"), stop)})}}, ErrUnsafe},
	} {
		data := zipOf(t, c.entries...)
		bounded(t, 4<<20, func() {
			if _, err := Read(data, Limits{}); !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", what, err, c.want)
			}
		})
	}
	// What is unpacked counts in all, the zip inside included.
	data := zipOf(t, entry{name: CheckpointFile, data: pt})
	if _, err := Read(data, Limits{MaxUnpacked: int64(len(pt)) + 100}); !errors.Is(err, ErrTooLarge) {
		t.Error(err)
	}
}
