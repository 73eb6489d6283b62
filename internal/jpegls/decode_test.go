package jpegls

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// streams returns the codestreams in DICOM files of testdata/dicom, which
// internal/dicom compares with pydicom.
func streams(t testing.TB) map[string][]byte {
	t.Helper()
	names, err := filepath.Glob(filepath.Join("..", "..", "testdata", "dicom", "jpegls*.dcm"))
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
		at := bytes.Index(data, []byte("\xff\xd8\xff"))
		if at < 0 {
			t.Fatalf("%s has no codestream", name)
		}
		m[filepath.Base(name)] = data[at:]
	}
	return m
}

var errLarge = errors.New("larger than the test allows")

// small refuses images of more than 2^16 samples.
func small(h Header) error {
	if h.W*h.H*h.Components > 1<<16 {
		return errLarge
	}
	return nil
}

func expected(err error) bool {
	return errors.Is(err, ErrDamaged) || errors.Is(err, ErrUnsupported) || errors.Is(err, errLarge)
}

func TestDecode_ReturnsTheErrorOfCheck(t *testing.T) {
	for name, data := range streams(t) {
		if _, samples, err := Decode(data, func(Header) error { return errLarge }); err != errLarge || samples != nil {
			t.Errorf("%s: %d samples, %v", name, len(samples), err)
		}
	}
}

func TestDecode_RefusesTruncatedStreams(t *testing.T) {
	for name, data := range streams(t) {
		// The end of a stream and DICOM's delimiter follow the last sample.
		for cut := 0; cut < len(data)-40; cut += 1 + len(data)/41 {
			if _, _, err := Decode(data[:cut], small); !expected(err) {
				t.Errorf("%s cut at %d of %d bytes: %v", name, cut, len(data), err)
			}
		}
	}
}

func TestDecode_ReturnsSamplesOrAnErrorForDamagedStreams(t *testing.T) {
	for name, data := range streams(t) {
		for at := 0; at < len(data); at += 1 + len(data)/23 {
			damaged := slices.Clone(data)
			damaged[at] ^= 0x41
			check(t, name, damaged)
		}
	}
}

// check checks that Decode returns all samples or an expected error.
func check(t *testing.T, name string, data []byte) {
	t.Helper()
	h, samples, err := Decode(data, small)
	switch {
	case err != nil && !expected(err):
		t.Errorf("%s: %v", name, err)
	case err == nil && len(samples) != h.W*h.H*h.Components:
		t.Errorf("%s: %d samples of %+v", name, len(samples), h)
	}
}

func FuzzDecode(f *testing.F) {
	for _, data := range streams(f) {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) { check(t, "fuzz", data) })
}
