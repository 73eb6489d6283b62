package hostile

import (
	"archive/zip"
	"bytes"
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
