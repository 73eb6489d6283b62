package hostile

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// bombEntry is the unpacked size of each image of a Bomb, in bytes.
const bombEntry = 32 << 20

// Bomb returns a zip of images, each 32 MiB of zeros. It compresses only once, which is
// slow under the race detector.
func Bomb(images int) []byte {
	zeros := make([]byte, bombEntry)
	packed, sum := deflate(zeros), crc32.ChecksumIEEE(zeros)
	var out bytes.Buffer
	z := zip.NewWriter(&out)
	for i := range images {
		w, err := z.CreateRaw(&zip.FileHeader{Name: fmt.Sprint(i, ".bmp"), Method: zip.Deflate, CRC32: sum,
			CompressedSize64: uint64(len(packed)), UncompressedSize64: bombEntry})
		must(err)
		_, err = w.Write(packed)
		must(err)
	}
	must(z.Close())
	return out.Bytes()
}

// Directory returns a zip of about size bytes that consists only of a directory, and
// the number of its entries. Their names are nameBytes long.
func Directory(size, nameBytes int) (data []byte, records int) {
	record := make([]byte, directoryHeaderBytes, directoryHeaderBytes+nameBytes)
	copy(record, directoryHeader)
	binary.LittleEndian.PutUint16(record[headerNameLength:], uint16(nameBytes))
	record = append(record, bytes.Repeat([]byte("a"), nameBytes)...)
	records = size / len(record)
	end := make([]byte, directoryEndBytes)
	copy(end, directoryEnd)
	binary.LittleEndian.PutUint16(end[endRecordsHere:], uint16(records))
	binary.LittleEndian.PutUint16(end[endRecords:], uint16(records))
	binary.LittleEndian.PutUint32(end[endDirectorySize:], uint32(records*len(record)))
	return append(bytes.Repeat(record, records), end...), records
}
