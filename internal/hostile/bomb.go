package hostile

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// bombEntry is what each image of a Bomb unpacks to.
const bombEntry = 32 << 20

// Bomb is a zip of so many images of 32 MiB of zeros each. They are deflated once:
// the race detector makes that slow.
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

// Directory is a zip of about so many bytes that is nothing but its directory, of
// entries with names of so many bytes, and how many those are.
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
