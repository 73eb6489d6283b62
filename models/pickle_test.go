package models

import (
	"archive/zip"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

func TestUnpickle_ReturnsPlainValues(t *testing.T) {
	data := asm("(", "N", "\x88", "\x89", "K\xff", "M\x01\x02", "J\xfe\xff\xff\xff", "\x8a\x00", "\x8a\x01\xff", "\x8a\x02\x00\x80",
		"\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x00", "I01\n", "I-7\n", "L12L\n", "G\x3f\xf0\x00\x00\x00\x00\x00\x00",
		"\x8c\x02\xc3\xa9", "C\x01\x00", "t", stop)
	v, err := unpickle(data)
	if err != nil {
		t.Fatal(err)
	}
	want := "[<nil> true false 255 513 -2 0 -1 -32768 {} true -7 12 1 é [0]]"
	if got := fmt.Sprint(v); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// Values that contain themselves, and values that double with every instruction, are
// not traversed, so that time and memory are linear in the number of instructions.
func TestUnpickle_HandlesRecursiveValues(t *testing.T) {
	self := "]q\x00h\x00a"                 // a list that contains itself
	loop := "}q\x01" + str("x") + "h\x01s" // a dict that contains itself
	for what, value := range map[string]string{
		"a list in itself": self, "a dict in itself": loop,
		"a dict in itself as the state": loop + "h\x01b",
		"doubling tuples":               ")q\x02" + strings.Repeat("h\x02\x86q\x02", 60_000),
	} {
		bounded(t, 64<<20, func() {
			_, _ = unpickle(asm(value, stop))
			_, err := Read(zipOf(entry{Name: "a/data.pkl", Data: asm(value, stop)}), Limits{})
			if err == nil {
				t.Errorf("%s: read as a model", what)
			}
		})
	}
	// As the offset, the config or a weight of an otherwise valid file.
	for what, data := range map[string][]byte{
		"offset":     asm(name("torch._utils", "_rebuild_tensor_v2"), "(", storageID("Float", "0", 1), self, nums(1), nums(1), "\x89}t", "R", stop),
		"config":     asm(dict(str("model_state_dict"), "}", str("config"), loop), stop),
		"image size": asm(dict(str("model_state_dict"), "}", str("config"), dict(str("image_size"), self)), stop),
		"class name": asm(dict(str("model_state_dict"), "}", str("config"), dict(str("class_names"), self)), stop),
		"weight":     asm(dict(str("model_state_dict"), dict(str("encoder.0.weight"), self)), stop),
		"root":       asm(self, stop),
	} {
		bounded(t, 1<<20, func() {
			if _, err := Read(zipOf(entry{Name: "a/data.pkl", Data: data}), Limits{}); err == nil {
				t.Errorf("%s: read as a model", what)
			}
		})
	}
}

func TestUnpickle_ChecksSizeFirst(t *testing.T) {
	data := make([]byte, maxPickleBytes+1)
	bounded(t, 1<<10, func() {
		if _, err := unpickle(data); !errors.Is(err, ErrTooLarge) {
			t.Error(err)
		}
	})
}

func TestUnpickle_ReturnsErrFormatForTruncatedPickle(t *testing.T) {
	data := pickleOf(t, golden(t, "resumable.pt"))
	for n := range data {
		if _, err := unpickle(data[:n]); !errors.Is(err, ErrFormat) {
			t.Fatalf("cut to %d of %d bytes: %v", n, len(data), err)
		}
	}
}

// pickleOf returns the data.pkl of a checkpoint.
func pickleOf(t testing.TB, checkpoint []byte) []byte {
	t.Helper()
	r, err := zip.NewReader(bytes.NewReader(checkpoint), int64(len(checkpoint)))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.File {
		if strings.HasSuffix(f.Name, "/data.pkl") {
			rc, err := f.Open()
			if err != nil {
				t.Fatal(err)
			}
			data, err := io.ReadAll(rc)
			if err != nil {
				t.Fatal(err)
			}
			return data
		}
	}
	t.Fatal("no data.pkl")
	return nil
}
