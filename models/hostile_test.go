package models

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/internal/hostile"
)

func TestRead_AcceptsBothByteOrders(t *testing.T) {
	for name, order := range map[string]binary.ByteOrder{"little": binary.LittleEndian, "big": binary.BigEndian} {
		es := append(tinyEntries(order, tinyConfig), entry{Name: "m/byteorder", Data: []byte(name)})
		m, err := Read(zipOf(es...), Limits{})
		if err != nil {
			t.Fatal(name, err)
		}
		if got := m.Weights[3].Data; fmt.Sprint(got) != "[55 56 57]" || m.ImageSize != 64 {
			t.Errorf("%s: the last bias is %v", name, got)
		}
	}
}

// reasons maps package hostile's reasons to errors.
var reasons = map[hostile.Reason]error{
	hostile.Format: ErrFormat, hostile.Unsafe: ErrUnsafe, hostile.TooLarge: ErrTooLarge,
	hostile.Architecture: ErrArchitecture, hostile.Metadata: ErrMetadata,
}

func TestRead_RejectsHostileFilesWithBoundedMemory(t *testing.T) {
	canary := filepath.Join(t.TempDir(), "canary")
	count := map[hostile.Class]int{}
	for _, f := range hostile.Models(canary) {
		count[f.Class]++
		t.Run(string(f.Class)+"/"+f.Name, func(t *testing.T) {
			// A pickle may have maxPickleOps values, an ONNX file thousands of names.
			// Everything else takes at most a few copies of the file.
			limit := uint64(1<<20 + 4*len(f.Data))
			switch f.Class {
			case hostile.Pickle:
				limit += 32 << 20
			case hostile.ONNX:
				limit += 4 << 20
			}
			bounded(t, limit, func() {
				m, err := Read(f.Data, Limits{})
				if m != nil || !errors.Is(err, reasons[f.Want]) {
					t.Errorf("%v, want %v", err, reasons[f.Want])
				}
				if err != nil && (len(err.Error()) > 600 || strings.Contains(err.Error(), "\n")) {
					t.Errorf("an error of %d characters: %.100q", len(err.Error()), err)
				}
			})
		})
	}
	if count[hostile.Pickle] < 25 || count[hostile.Zip] < 20 || count[hostile.ONNX] < 15 {
		t.Errorf("too few files: %v", count)
	}
	if _, err := os.Lstat(canary); err == nil {
		t.Error("a file executed code")
	}
}

func TestRead_NeverPanicsOnDamagedFiles(t *testing.T) {
	good := zipOf(tinyEntries(binary.LittleEndian, tinyConfig)...)
	if _, err := Read(good, Limits{}); err != nil {
		t.Fatal(err)
	}
	for n := range good {
		if _, err := Read(good[:n], Limits{}); !errors.Is(err, ErrFormat) {
			t.Fatalf("cut to %d of %d bytes: %v", n, len(good), err)
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	onnx := golden(t, "service.onnx")
	for range 2000 {
		for _, original := range [][]byte{good, onnx} {
			data := bytes.Clone(original)
			for range 1 + r.IntN(4) {
				data[r.IntN(len(data))] = byte(r.Uint32())
			}
			if _, err := Read(data, Limits{}); err != nil && !sentinel(err) {
				t.Fatalf("an error without a sentinel: %v", err)
			}
		}
	}
}

// sentinel reports whether err wraps one of Read's errors.
func sentinel(err error) bool {
	for _, want := range []error{ErrFormat, ErrUnsafe, ErrTooLarge, ErrArchitecture, ErrMetadata} {
		if errors.Is(err, want) {
			return true
		}
	}
	return false
}

func TestHalfToFloat_IsExact(t *testing.T) {
	for h, want := range map[uint16]float64{
		0x0000: 0, 0x0001: math.Ldexp(1, -24), 0x03ff: math.Ldexp(1023, -24), 0x0400: math.Ldexp(1, -14), 0x3c00: 1, 0xc000: -2,
		0x3555: 0.333251953125, 0x7bff: 65504, 0x7c00: math.Inf(1), 0xfc00: math.Inf(-1), 0x8001: -math.Ldexp(1, -24),
	} {
		if got := halfToFloat(h); float64(got) != want {
			t.Errorf("0x%04x is %v, want %v", h, got, want)
		}
	}
	if got := halfToFloat(0x8000); math.Float32bits(got) != 1<<31 {
		t.Errorf("minus zero is %v", got)
	}
	if got := halfToFloat(0x7e00); got == got {
		t.Errorf("NaN is %v", got)
	}
}
