package models

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
)

// entry is a file in a zip made here. Where a size is set, the zip lies.
type entry struct {
	name             string
	data             []byte
	method           uint16
	size, packedSize uint64
	flags            uint16
}

func zipOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, e := range entries {
		packed := e.data
		if e.method == zip.Deflate {
			packed = deflate(t, e.data)
		}
		h := &zip.FileHeader{Name: e.name, Method: e.method, Flags: e.flags, CRC32: crc32.ChecksumIEEE(e.data),
			UncompressedSize64: uint64(len(e.data)), CompressedSize64: uint64(len(packed))}
		if e.size != 0 {
			h.UncompressedSize64 = e.size
		}
		if e.packedSize != 0 {
			h.CompressedSize64 = e.packedSize
		}
		w, err := z.CreateRaw(h)
		if err == nil {
			_, err = w.Write(packed)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// deflate gives the Deflate stream that archive/zip makes of data.
func deflate(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	w, err := z.Create("x")
	if err == nil {
		_, err = w.Write(data)
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	r, err := zip.NewReader(bytes.NewReader(b.Bytes()), int64(b.Len()))
	if err != nil {
		t.Fatal(err)
	}
	at, err := r.File[0].DataOffset()
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()[at : at+int64(r.File[0].CompressedSize64)]
}

// tiny is the smallest network, 3-1, of 58 parameters.
var tiny = Architecture{Channels: []int{3, 1}}

// tinyState is the pickle of its state dict, one storage each.
func tinyState() string {
	var parts []string
	for i, p := range tiny.Parameters() {
		parts = append(parts, str(p.Name), tensor(fmt.Sprint(i), p.Shape...))
	}
	return dict(parts...)
}

// tinyEntries are the files of a good checkpoint of the tiny network, with the
// elements counted up from 0, in an order of bytes.
func tinyEntries(order binary.ByteOrder, config string) []entry {
	es := []entry{{name: "m/data.pkl", data: asm(dict(str("model_state_dict"), tinyState(), str("config"), config), stop)}}
	v := float32(0)
	for i, p := range tiny.Parameters() {
		b := make([]byte, 4*p.Size())
		for j := range p.Size() {
			order.PutUint32(b[4*j:], math.Float32bits(v))
			v++
		}
		es = append(es, entry{name: fmt.Sprintf("m/data/%d", i), data: b})
	}
	return append(es, entry{name: "m/version", data: []byte("3\n")})
}

var tinyConfig = dict(str("image_size"), num(64), str("input_channels"), num(3))

func TestReadTakesEitherByteOrder(t *testing.T) {
	for name, order := range map[string]binary.ByteOrder{"little": binary.LittleEndian, "big": binary.BigEndian} {
		es := append(tinyEntries(order, tinyConfig), entry{name: "m/byteorder", data: []byte(name)})
		m, err := Read(zipOf(t, es...), Limits{})
		if err != nil {
			t.Fatal(name, err)
		}
		if got := m.Weights[3].Data; fmt.Sprint(got) != "[55 56 57]" || m.ImageSize != 64 {
			t.Errorf("%s: the last bias is %v", name, got)
		}
	}
}

func TestReadOfAZipThatLiesFailsWithinBounds(t *testing.T) {
	good := tinyEntries(binary.LittleEndian, tinyConfig)
	with := func(i int, change func(*entry)) []byte {
		es := append([]entry(nil), good...)
		change(&es[i])
		return zipOf(t, es...)
	}
	many := make([]entry, maxEntries+1)
	for i := range many {
		many[i].name = fmt.Sprint(i)
	}
	shared := func(kind string, numel int) []byte {
		return with(0, func(e *entry) {
			e.data = bytes.Replace(e.data, []byte(storageID("Float", "0", 27)), []byte(storageID(kind, "0", numel)), 1)
		})
	}
	for what, c := range map[string]struct {
		data []byte
		want error
	}{
		"an empty zip":                        {zipOf(t), ErrFormat},
		"a zip of photos":                     {zipOf(t, entry{name: "a/b.png", data: []byte("x")}), ErrFormat},
		"the start of a zip":                  {[]byte("PK\x03\x04"), ErrFormat},
		"a name twice":                        {zipOf(t, append(good, good[1])...), ErrFormat},
		"two checkpoints":                     {zipOf(t, append(good, entry{name: "n/data.pkl", data: good[0].data})...), ErrFormat},
		"too many entries":                    {zipOf(t, many...), ErrTooLarge},
		"an encrypted entry":                  {with(0, func(e *entry) { e.flags = 1 }), ErrFormat},
		"an unknown compression":              {with(0, func(e *entry) { e.method = 14 }), ErrFormat},
		"a stored entry of two sizes":         {with(1, func(e *entry) { e.size = 1 << 20 }), ErrFormat},
		"a pickle of 2^60 bytes":              {with(0, func(e *entry) { e.size, e.packedSize = 1<<60, 1<<60 }), ErrFormat},
		"a pickle that claims 1 GB":           {with(0, func(e *entry) { e.method, e.size = zip.Deflate, 1<<30 }), ErrTooLarge},
		"a pickle that unpacks to more":       {with(0, func(e *entry) { e.method, e.size = zip.Deflate, 10 }), ErrFormat},
		"a pickle that unpacks to less":       {with(0, func(e *entry) { e.method, e.size = zip.Deflate, 1<<16 }), ErrFormat},
		"a bomb for a pickle":                 {with(0, func(e *entry) { e.method, e.data = zip.Deflate, make([]byte, 16<<20) }), ErrTooLarge},
		"a storage that is too short":         {with(1, func(e *entry) { e.data = e.data[:100] }), ErrFormat},
		"a storage that is too long":          {with(1, func(e *entry) { e.data = make([]byte, 1<<20) }), ErrFormat},
		"a storage of another type":           {shared("Double", 27), ErrFormat},
		"a storage that claims more":          {shared("Float", 1<<30), ErrFormat},
		"a storage of integers":               {shared("Int", 27), ErrArchitecture},
		"a storage that is missing":           {zipOf(t, append(append([]entry(nil), good[0]), good[2:]...)...), ErrFormat},
		"a weight that is not finite":         {with(1, func(e *entry) { e.data = bytes.Repeat([]byte{0xff}, 108) }), ErrFormat},
		"an unknown byte order":               {zipOf(t, append(good, entry{name: "m/byteorder", data: []byte("middle")})...), ErrFormat},
		"a long byte order":                   {zipOf(t, append(good, entry{name: "m/byteorder", data: make([]byte, 17)})...), ErrTooLarge},
		"a list for a checkpoint":             {with(0, func(e *entry) { e.data = asm("]", stop) }), ErrFormat},
		"a list for a state dict":             {with(0, func(e *entry) { e.data = asm(dict(str("model_state_dict"), "]"), stop) }), ErrFormat},
		"a list for a config":                 {with(0, func(e *entry) { e.data = asm(dict(str("model_state_dict"), "}", str("config"), "]"), stop) }), ErrFormat},
		"an empty dict":                       {with(0, func(e *entry) { e.data = asm("}", stop) }), ErrArchitecture},
		"a number in the state dict":          {with(0, func(e *entry) { e.data = asm(dict(str("encoder.0.weight"), num(1)), stop) }), ErrArchitecture},
		"a nameless entry in the state dict":  {with(0, func(e *entry) { e.data = append(asm(tinyState(), num(1), tensor("0", 1), "s"), '.') }), ErrArchitecture},
		"images of one channel":               {zipOf(t, tinyEntries(binary.LittleEndian, dict(str("input_channels"), num(1)))...), ErrArchitecture},
		"an image size that is odd":           {zipOf(t, tinyEntries(binary.LittleEndian, dict(str("image_size"), num(65)))...), ErrMetadata},
		"an image size of a million":          {zipOf(t, tinyEntries(binary.LittleEndian, dict(str("image_size"), num(1_000_000)))...), ErrMetadata},
		"a negative image size":               {zipOf(t, tinyEntries(binary.LittleEndian, dict(str("image_size"), num(-64)))...), ErrMetadata},
		"an image size in words":              {zipOf(t, tinyEntries(binary.LittleEndian, dict(str("image_size"), str("64")))...), ErrMetadata},
		"a negative threshold":                {zipOf(t, tinyEntries(binary.LittleEndian, dict(str("threshold"), num(-1)))...), ErrMetadata},
		"a threshold that is NaN":             {zipOf(t, tinyEntries(binary.LittleEndian, dict(str("threshold"), "G\x7f\xf8\x00\x00\x00\x00\x00\x00"))...), ErrMetadata},
		"class names that are numbers":        {zipOf(t, tinyEntries(binary.LittleEndian, dict(str("class_names"), nums(1)))...), ErrMetadata},
		"another model type":                  {zipOf(t, tinyEntries(binary.LittleEndian, dict(str("model_type"), str("vae")))...), ErrMetadata},
		"metadata that is no JSON":            {zipOf(t, tinyEntries(binary.LittleEndian, dict(str("metadata_json"), str("{")))...), ErrMetadata},
		"metadata that is a number":           {zipOf(t, tinyEntries(binary.LittleEndian, dict(str("metadata_json"), num(1)))...), ErrMetadata},
		"metadata of another network":         {zipOf(t, tinyEntries(binary.LittleEndian, dict(str("metadata_json"), str(`{"threshold":1,"architecture":{"channels":[3,2]}}`)))...), ErrMetadata},
		"a zero-filled image in a checkpoint": {bytes.Repeat([]byte{0}, 1000), ErrFormat},
		"an empty file":                       {nil, ErrFormat},
		"a pickle without a zip":              {asm("N", stop), ErrFormat},
		"a PNG":                               {[]byte("\x89PNG\r\n\x1a\n0000"), ErrFormat},
		"an HTML page":                        {[]byte("<!DOCTYPE html><html></html>"), ErrFormat},
		"a shape no memory holds, in one byte": {with(0, func(e *entry) {
			e.data = asm(dict(str("encoder.0.weight"), rebuild(storageID("Float", "0", 27), 0, nums(2048, 3, 3, 3), nums(0, 0, 0, 0))), stop)
		}), ErrArchitecture},
	} {
		t.Run(what, func(t *testing.T) {
			bounded(t, 24<<20, func() {
				_, err := Read(c.data, Limits{})
				if !errors.Is(err, c.want) {
					t.Errorf("%v, want %v", err, c.want)
				}
				if err != nil && len(err.Error()) > 500 {
					t.Errorf("the error has %d characters", len(err.Error()))
				}
			})
		})
	}
}

// A storage of one element may stand for any number of weights by strides of
// zero: they count as what they unpack to.
func TestReadCountsWeightsNotBytes(t *testing.T) {
	wide := Architecture{Channels: []int{3, 2048, 2048}}
	var parts []string
	for _, p := range wide.Parameters() {
		parts = append(parts, str(p.Name), rebuild(storageID("Float", "0", 1), 0, nums(p.Shape...), nums(make([]int, len(p.Shape))...)))
	}
	data := zipOf(t, entry{name: "m/data.pkl", data: asm(dict(parts...), stop)}, entry{name: "m/data/0", data: make([]byte, 4)})
	bounded(t, 1<<20, func() {
		if _, err := Read(data, Limits{}); !errors.Is(err, ErrTooLarge) {
			t.Error(err)
		}
	})
}

func TestReadOfADamagedFileNeverPanics(t *testing.T) {
	good := zipOf(t, tinyEntries(binary.LittleEndian, tinyConfig)...)
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

func sentinel(err error) bool {
	for _, want := range []error{ErrFormat, ErrUnsafe, ErrTooLarge, ErrArchitecture, ErrMetadata} {
		if errors.Is(err, want) {
			return true
		}
	}
	return false
}

func TestHalvesWidenExactly(t *testing.T) {
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

func FuzzRead(f *testing.F) {
	f.Add(zipOf(f, tinyEntries(binary.LittleEndian, tinyConfig)...))
	f.Add(zipOf(f, entry{name: CheckpointFile, data: zipOf(f, tinyEntries(binary.BigEndian, "}")...)}, entry{name: MetadataFile, data: []byte(`{"threshold":1}`)}))
	f.Add(tinyONNX(f, nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := Read(data, Limits{MaxBytes: 1 << 20, MaxParameters: 1 << 16, MaxUnpacked: 1 << 20})
		switch {
		case err != nil && !sentinel(err):
			t.Errorf("an error without a sentinel: %v", err)
		case err == nil && (m.Metadata.Validate() != nil || len(m.Weights) != len(m.Architecture.Parameters()) || m.ImageSize%m.Architecture.Stride() != 0):
			t.Errorf("an incomplete model: %+v", m)
		}
	})
}

func FuzzParseMetadata(f *testing.F) {
	f.Add([]byte(`{"threshold":0.02}`))
	f.Add([]byte(`{"model_type":"autoencoder","image_size":256,"threshold":1e-3,"class_names":["a"],"decision":{"measure":"mse","threshold":1}}`))
	f.Add([]byte(strings.Repeat("[", 100)))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := ParseMetadata(data)
		switch {
		case err != nil && !errors.Is(err, ErrMetadata):
			t.Errorf("an error without a sentinel: %v", err)
		case err == nil && m.Validate() != nil:
			t.Errorf("invalid metadata was accepted: %+v", m)
		}
	})
}
