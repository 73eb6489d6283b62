// Package codectest tests decoders of untrusted codestreams on the DICOM files of
// testdata, which internal/dicom compares with pydicom. Only tests may import it.
package codectest

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/internal/testkit"
)

// Codec is a decoder under test.
type Codec struct {
	// Pattern matches the names of the DICOM files in testdata/dicom, and Start begins
	// the codestream in each.
	Pattern, Start string
	// Decode decodes a codestream. It calls check with the number of samples in the
	// header, and returns that number with the samples.
	Decode func(data []byte, check func(samples int) error) (want int, samples []uint16, err error)
	// Errors are the errors that Decode may return besides that of check.
	Errors []error
}

// ErrLarge is returned by Small.
var ErrLarge = errors.New("larger than the test allows")

// Small returns ErrLarge for more than 2^16 samples.
func Small(samples int) error {
	if samples > 1<<16 {
		return ErrLarge
	}
	return nil
}

// Streams returns the codestreams by the names of their files.
func (c Codec) Streams(t testing.TB) map[string][]byte {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(testkit.Root(t), "testdata", "dicom", c.Pattern))
	if err != nil || len(names) < 10 {
		t.Fatalf("%d files: %v", len(names), err)
	}
	m := map[string][]byte{}
	for _, name := range names {
		if strings.Contains(name, "frames") {
			continue // several streams
		}
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		at := bytes.Index(data, []byte(c.Start))
		if at < 0 {
			t.Fatalf("%s has no codestream", name)
		}
		m[filepath.Base(name)] = data[at:]
	}
	return m
}

// Expected reports whether Decode may return an error for a damaged stream.
func (c Codec) Expected(err error) bool {
	return errors.Is(err, ErrLarge) || slices.ContainsFunc(c.Errors, func(e error) bool { return errors.Is(err, e) })
}

// Check checks that Decode returns all samples or an expected error.
func (c Codec) Check(t *testing.T, name string, data []byte) {
	t.Helper()
	want, samples, err := c.Decode(data, Small)
	switch {
	case err != nil && !c.Expected(err):
		t.Errorf("%s: %v", name, err)
	case err == nil && len(samples) != want:
		t.Errorf("%s: %d samples, expected %d", name, len(samples), want)
	}
}

// Run tests the decoder on intact, truncated and damaged streams.
func (c Codec) Run(t *testing.T) {
	streams := c.Streams(t)
	t.Run("ReturnsTheErrorOfCheck", func(t *testing.T) {
		for name, data := range streams {
			if _, samples, err := c.Decode(data, func(int) error { return ErrLarge }); err != ErrLarge || samples != nil {
				t.Errorf("%s: %d samples, %v", name, len(samples), err)
			}
		}
	})
	t.Run("RefusesTruncatedStreams", func(t *testing.T) {
		for name, data := range streams {
			// The end of a stream and DICOM's delimiter follow the last sample.
			for cut := 0; cut < len(data)-40; cut += 1 + len(data)/41 {
				if _, _, err := c.Decode(data[:cut], Small); !c.Expected(err) {
					t.Errorf("%s cut at %d of %d bytes: %v", name, cut, len(data), err)
				}
			}
		}
	})
	t.Run("ReturnsSamplesOrAnErrorForDamagedStreams", func(t *testing.T) {
		for name, data := range streams {
			for at := 0; at < len(data); at += 1 + len(data)/23 {
				damaged := slices.Clone(data)
				damaged[at] ^= 0x41
				c.Check(t, name, damaged)
			}
		}
	})
}

// Fuzz fuzzes the decoder, with the streams as seeds.
func (c Codec) Fuzz(f *testing.F) {
	for _, data := range c.Streams(f) {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) { c.Check(t, "fuzz", data) })
}
