package exporter

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash/crc32"
	"io"
	"math/big"
)

const (
	// checkpointRoot is the folder inside the zip. torch.save names it after the file.
	checkpointRoot = "autoencoder"
	// storageAlignment is PyTorch's alignment of storages in bytes, which lets torch.load
	// map the file into memory.
	storageAlignment = 64
	// zipHeader is the length in bytes of a local file header without name and extra.
	zipHeader = 30
	// dosEpoch is 1 January 1980, the first date that a zip can hold.
	dosEpoch = 1<<5 | 1
)

// alignedZip writes uncompressed zip entries with fixed times, whose data begins at
// multiples of storageAlignment. close returns the first error.
type alignedZip struct {
	count  countingWriter
	zip    *zip.Writer
	digest []byte // SHA-256 over all entries so far
	err    error
}

func newAlignedZip(w io.Writer) *alignedZip {
	z := &alignedZip{count: countingWriter{w: w}}
	z.zip = zip.NewWriter(&z.count)
	return z
}

func (z *alignedZip) add(name string, data []byte) {
	if z.err != nil {
		return
	}
	name = checkpointRoot + "/" + name
	if z.err = z.zip.Flush(); z.err != nil {
		return
	}
	// PyTorch pads with an extra field: the id "FB", the length, and bytes of 'Z'.
	const extraHeader = 4
	start := z.count.n + zipHeader + len(name) + extraHeader
	padding := (storageAlignment - start%storageAlignment) % storageAlignment
	extra := append([]byte{'F', 'B', byte(padding), 0}, bytes.Repeat([]byte{'Z'}, padding)...)
	header := &zip.FileHeader{
		Name: name, Method: zip.Store, Extra: extra, CRC32: crc32.ChecksumIEEE(data),
		CompressedSize64: uint64(len(data)), UncompressedSize64: uint64(len(data)),
	}
	//lint:ignore SA1019 CreateRaw writes this field and ignores Modified
	header.ModifiedDate = dosEpoch
	w, err := z.zip.CreateRaw(header)
	if err == nil {
		_, err = w.Write(data)
	}
	sum := sha256.Sum256(data)
	h := sha256.Sum256(append(append(z.digest, name...), sum[:]...))
	z.digest, z.err = h[:], err
}

// id returns 40 decimal digits derived from a hash of the names and contents of the entries
// so far. PyTorch's serialization id is such a hash too.
func (z *alignedZip) id() []byte {
	digits := fmt.Sprintf("%040s", new(big.Int).SetBytes(z.digest))
	return []byte(digits[len(digits)-40:])
}

func (z *alignedZip) close() error {
	if z.err == nil {
		z.err = z.zip.Close()
	}
	if z.err != nil {
		return fmt.Errorf("exporter: writing the checkpoint: %w", z.err)
	}
	return nil
}

// countingWriter counts the bytes written.
type countingWriter struct {
	w io.Writer
	n int
}

func (c *countingWriter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += n
	return n, err
}
