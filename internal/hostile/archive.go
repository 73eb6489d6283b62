package hostile

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math"
)

// Entry is a file in a zip. Size, PackedSize and CRC32, when not zero, replace the
// true values.
type Entry struct {
	Name             string
	Data             []byte
	Method           uint16
	Size, PackedSize uint64
	CRC32            uint32
	Flags            uint16
	Mode             fs.FileMode
}

// Pack returns a zip of the entries.
func Pack(entries ...Entry) []byte {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, e := range entries {
		packed := e.Data
		if e.Method == zip.Deflate {
			packed = deflate(e.Data)
		}
		h := &zip.FileHeader{Name: e.Name, Method: e.Method, Flags: e.Flags, CRC32: crc32.ChecksumIEEE(e.Data),
			UncompressedSize64: uint64(len(e.Data)), CompressedSize64: uint64(len(packed))}
		if e.Size != 0 {
			h.UncompressedSize64 = e.Size
		}
		if e.PackedSize != 0 {
			h.CompressedSize64 = e.PackedSize
		}
		if e.CRC32 != 0 {
			h.CRC32 = e.CRC32
		}
		if e.Mode != 0 {
			h.SetMode(e.Mode)
		}
		w, err := z.CreateRaw(h)
		must(err)
		_, err = w.Write(packed)
		must(err)
	}
	must(z.Close())
	return b.Bytes()
}

// must panics on an error. Writing to memory does not fail.
func must(err error) {
	if err != nil {
		panic(fmt.Sprint("hostile: ", err))
	}
}

// deflate returns data as the Deflate stream that archive/zip writes.
func deflate(data []byte) []byte {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	w, err := z.Create("x")
	must(err)
	_, err = w.Write(data)
	must(err)
	must(z.Close())
	r, err := zip.NewReader(bytes.NewReader(b.Bytes()), int64(b.Len()))
	must(err)
	at, err := r.File[0].DataOffset()
	must(err)
	return b.Bytes()[at : at+int64(r.File[0].CompressedSize64)]
}

// Checkpoint returns a PyTorch zip checkpoint with this pickle and the storages of the
// smallest network.
func Checkpoint(pickle []byte) []byte {
	es := CheckpointEntries(binary.LittleEndian, "}")
	es[0].Data = pickle
	return Pack(es...)
}

// CheckpointEntries returns the files of a valid checkpoint of the smallest network:
// first the pickle, with the config, then the storages. The elements count up from 0.
func CheckpointEntries(order binary.ByteOrder, config string) []Entry {
	es := []Entry{{Name: "m/data.pkl", Data: Asm(Dict(Str("model_state_dict"), State(), Str("config"), config), Stop)}}
	v := float32(0)
	for i, p := range Parameters {
		b := make([]byte, 4*p.Size())
		for j := range p.Size() {
			order.PutUint32(b[4*j:], math.Float32bits(v))
			v++
		}
		es = append(es, Entry{Name: fmt.Sprintf("m/data/%d", i), Data: b})
	}
	return append(es, Entry{Name: "m/version", Data: []byte("3\n")})
}

// Signatures of the records of a zip, sizes of records and offsets of fields, in bytes.
const (
	fileHeader         = "PK\x03\x04"
	directoryHeader    = "PK\x01\x02"
	directoryEnd       = "PK\x05\x06"
	directory64End     = "PK\x06\x06"
	directory64Locator = "PK\x06\x07"

	// Sizes without the variable-length names and comments.
	directoryHeaderBytes = 46
	directoryEndBytes    = 22

	headerMethod       = 10 // offsets in directoryHeader
	headerCRC32        = 16
	headerPackedSize   = 20
	headerSize         = 24
	headerNameLength   = 28
	headerExtraLength  = 30
	headerOffset       = 42
	endRecordsHere     = 8 // offsets in directoryEnd
	endRecords         = 10
	endDirectorySize   = 12
	endDirectoryOffset = 16
	endCommentLength   = 20
)

// record returns the offset of the nth record with a signature, counted from 0.
func record(data []byte, signature string, nth int) int {
	at := -1
	for range nth + 1 {
		i := bytes.Index(data[at+1:], []byte(signature))
		if i < 0 {
			panic("hostile: no such record in the zip")
		}
		at += 1 + i
	}
	return at
}

// patch returns data with a field of the nth record of a signature replaced. The type
// of value determines the size of the field.
func patch(data []byte, signature string, nth, field int, value any) []byte {
	data = bytes.Clone(data)
	_, err := binary.Encode(data[record(data, signature, nth)+field:], binary.LittleEndian, value)
	must(err)
	return data
}

// withZip64End returns the zip with a zip64 end of the directory, with these numbers,
// before the plain one, which then refers to it.
func withZip64End(data []byte, records, size, offset uint64) []byte {
	at := record(data, directoryEnd, 0)
	out := bytes.Clone(data[:at])
	out = append(out, directory64End...)
	for _, v := range []any{uint64(44), uint16(45), uint16(45), uint32(0), uint32(0), records, records, size, offset} {
		out, _ = binary.Append(out, binary.LittleEndian, v)
	}
	out = append(out, directory64Locator...)
	for _, v := range []any{uint32(0), uint64(at), uint32(1)} {
		out, _ = binary.Append(out, binary.LittleEndian, v)
	}
	end := bytes.Clone(data[at:])
	for i := endRecordsHere; i < endCommentLength; i++ {
		end[i] = 0xff
	}
	return append(out, end...)
}

// withComment returns the zip with a comment.
func withComment(data []byte, comment string) []byte {
	data = patch(data, directoryEnd, 0, endCommentLength, uint16(len(comment)))
	return append(data, comment...)
}
