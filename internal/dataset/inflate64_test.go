package dataset

import (
	"bytes"
	"compress/flate"
	"hash/crc32"
	"io"
	"os"
	"testing"
)

// The size and checksum of the content of testdata/far.deflate64, which has distances and
// lengths that Deflate does not have.
const (
	farBytes = 181_811
	farCRC32 = 0xfc9466b7
)

func readTestdata(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestInflater64_ReadsFarAndLongMatches(t *testing.T) {
	stream := readTestdata(t, "far.deflate64")
	got, err := io.ReadAll(newInflater64(bytes.NewReader(stream)))
	if err != nil || len(got) != farBytes || crc32.ChecksumIEEE(got) != farCRC32 {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	for n := range len(stream) {
		if _, err := io.ReadAll(newInflater64(bytes.NewReader(stream[:n]))); err == nil {
			t.Fatalf("no error for the first %d bytes", n)
		}
	}
}

// The two formats are the same without distances and lengths that only one has.
func TestInflater64_ReadsDeflateWithoutLongMatches(t *testing.T) {
	data := bytes.Repeat([]byte("tiles of one size, "), 10)
	for level := flate.HuffmanOnly; level <= flate.BestCompression; level++ {
		var b bytes.Buffer
		w, _ := flate.NewWriter(&b, level)
		for range 3 {
			_, _ = w.Write(data)
			_ = w.Flush() // empty stored blocks
		}
		_ = w.Close()
		got, err := io.ReadAll(newInflater64(iotestReader{&b}))
		if err != nil || !bytes.Equal(got, bytes.Repeat(data, 3)) {
			t.Errorf("level %d: %d bytes, %v", level, len(got), err)
		}
	}
}

// iotestReader returns one byte at a time.
type iotestReader struct{ io.Reader }

func (r iotestReader) Read(p []byte) (int, error) { return r.Reader.Read(p[:min(1, len(p))]) }

func FuzzInflater64(f *testing.F) {
	f.Add(readTestdata(f, "far.deflate64"))
	f.Add([]byte{1, 0, 0, 0xff, 0xff})
	f.Add([]byte{3, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		n, err := io.Copy(io.Discard, io.LimitReader(newInflater64(bytes.NewReader(data)), 1<<22))
		if err == nil && n > int64(len(data))*1<<17 {
			t.Errorf("%d bytes from %d", n, len(data))
		}
	})
}
