package exporter

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"

	"github.com/deepmed/anomaly/models"
)

// ErrUnwritable is returned when a model cannot be written to a file that
// package models would read again: its weights are not those of its
// architecture, or its metadata cannot base a verdict.
var ErrUnwritable = errors.New("the model cannot be written")

const (
	// checkpointRoot is the folder inside the zip, which torch.save names after
	// the file.
	checkpointRoot = "autoencoder"
	// storageAlignment is where PyTorch puts a storage, so that torch.load can
	// map it into memory.
	storageAlignment = 64
	// zipHeader is the length of a local file header without name and extra.
	zipHeader = 30
	// dosEpoch is 1 January 1980, the first day a zip can tell.
	dosEpoch = 1<<5 | 1
)

// WriteCheckpoint writes a model as a PyTorch zip checkpoint, as torch.save
// does: torch.load(f, weights_only=True) gives {"model_state_dict": OrderedDict,
// "config": dict}, in which everything beside the tensors is plain data. The
// config carries the metadata twice: the keys that matter by themselves, and
// under "metadata_json" the whole of it, which models.Read goes by. Numbers with
// a fraction are text there, which float() reads as it does a number: see
// pickler.
//
// The same model gives the same bytes. It returns ErrUnwritable, wrapped, and
// has written nothing when package models would not read the result.
func WriteCheckpoint(w io.Writer, m *models.Model) error {
	md, err := checkpointMetadata(m)
	if err != nil {
		return err
	}
	weights := m.Weights.Ordered(m.Architecture.Parameters())
	data, err := checkpointPickle(m, md, weights)
	if err != nil {
		return err
	}
	z := newAlignedZip(w)
	z.add("data.pkl", data)
	z.add(".format_version", []byte("1"))
	z.add(".storage_alignment", []byte(strconv.Itoa(storageAlignment)))
	z.add("byteorder", []byte("little"))
	for i, t := range slices.Concat(weights, m.Reference) {
		b := make([]byte, 4*len(t.Data))
		for j, v := range t.Data {
			binary.LittleEndian.PutUint32(b[4*j:], math.Float32bits(v))
		}
		z.add("data/"+strconv.Itoa(i), b)
	}
	z.add("version", []byte("3\n"))
	z.add(".data/serialization_id", z.id())
	return z.close()
}

// checkpointMetadata checks a model and completes its metadata.
func checkpointMetadata(m *models.Model) (models.Metadata, error) {
	unwritable := func(err error) error { return fmt.Errorf("%w: %w", ErrUnwritable, err) }
	a, err := models.ArchitectureOf(m.Weights)
	if err != nil {
		return models.Metadata{}, unwritable(err)
	}
	if !a.Equal(m.Architecture) {
		return models.Metadata{}, fmt.Errorf("%w: the weights are those of a %s network, expected %s", ErrUnwritable, a, m.Architecture)
	}
	for _, p := range a.Parameters() {
		if t, _ := m.Weights.Get(p.Name); len(t.Data) != p.Size() {
			return models.Metadata{}, fmt.Errorf("%w: %s has %d elements, expected %d", ErrUnwritable, p.Name, len(t.Data), p.Size())
		}
	}
	if name, ok := m.Weights.Finite(); !ok {
		return models.Metadata{}, fmt.Errorf("%w: %s has elements that are not finite numbers", ErrUnwritable, name)
	}
	md := m.Metadata
	if md.ImageSize == 0 {
		md.ImageSize = m.ImageSize
	}
	if md.ImageSize != m.ImageSize || m.ImageSize < a.Stride() || m.ImageSize > models.MaxImageSize || m.ImageSize%a.Stride() != 0 {
		return models.Metadata{}, fmt.Errorf("%w: the image size is %d, and %d in the metadata, expected a multiple of %d up to %d",
			ErrUnwritable, m.ImageSize, md.ImageSize, a.Stride(), models.MaxImageSize)
	}
	if err := m.CheckReference(); err != nil {
		return models.Metadata{}, unwritable(err)
	}
	if md.Architecture != nil && !md.Architecture.Equal(a) {
		return models.Metadata{}, fmt.Errorf("%w: the metadata is that of a %s network, the weights are those of a %s one", ErrUnwritable, md.Architecture, a)
	}
	if md.ModelType == "" {
		md.ModelType = models.ModelType
	}
	if md.FormatVersion == 0 {
		md.FormatVersion = models.FormatVersion
	}
	if err := md.Validate(); err != nil {
		return models.Metadata{}, unwritable(err)
	}
	return md, nil
}

// checkpointPickle writes data.pkl: what the zip holds and where its tensors
// lie.
func checkpointPickle(m *models.Model, md models.Metadata, weights models.StateDict) ([]byte, error) {
	whole, err := json.Marshal(md)
	if err != nil {
		return nil, fmt.Errorf("%w: its metadata: %w", ErrUnwritable, err)
	}
	if len(whole) > models.MaxMetadataBytes {
		return nil, fmt.Errorf("%w: its metadata has %d bytes, at most %d are read", ErrUnwritable, len(whole), models.MaxMetadataBytes)
	}
	standard := models.StandardPreprocessing()
	preprocessing := [][2]string{
		{"color_mode", standard.ColorMode}, {"resize", standard.Resize}, {"scale", decimal(standard.Scale)}, {"layout", standard.Layout},
	}
	p := newPickler()
	p.op('}', '(')
	p.text("model_state_dict")
	p.global("collections", "OrderedDict")
	p.op(')', 'R', '(')
	for i, t := range weights {
		p.text(t.Name)
		p.tensor(strconv.Itoa(i), t.Shape)
	}
	p.op('u')
	if m.Reference != nil {
		p.text(models.ReferenceKey)
		p.global("collections", "OrderedDict")
		p.op(')', 'R', '(')
		for i, t := range m.Reference {
			p.text(t.Name)
			p.tensor(strconv.Itoa(len(weights)+i), t.Shape)
		}
		p.op('u')
	}
	p.text("config")
	p.op('}', '(')
	for _, e := range []struct {
		key   string
		value any
	}{
		{"image_size", m.ImageSize},
		{"input_channels", models.InputChannels},
		{"channels", m.Architecture.Channels},
		{"model_type", md.ModelType},
		{"preprocessing", preprocessing},
		{"threshold", md.Threshold},
		{"mean_error", md.MeanError},
		{"std_error", md.StdError},
		{"class_names", md.Classes()},
		{"format_version", md.FormatVersion},
		{"metadata_json", string(whole)},
	} {
		p.text(e.key)
		p.plain(e.value)
	}
	p.op('u', 'u', '.')
	return p.out.Bytes(), nil
}

// pickler writes pickle protocol 2 with the few instructions that PyTorch's
// weights_only reader knows since it exists. That of 1.13 knows none for floats
// (PyTorch issue 94670), so those are written as text. It uses no memo, which is
// optional.
type pickler struct{ out bytes.Buffer }

func newPickler() *pickler {
	p := new(pickler)
	p.op(0x80, 2)
	return p
}

func (p *pickler) op(b ...byte) { p.out.Write(b) }

func (p *pickler) global(module, name string) {
	p.op('c')
	p.out.WriteString(module + "\n" + name + "\n")
}

func (p *pickler) text(s string) {
	s = strings.ToValidUTF8(s, "\uFFFD")
	p.op('X')
	p.op(binary.LittleEndian.AppendUint32(nil, uint32(len(s)))...)
	p.out.WriteString(s)
}

// integer writes BININT1 for a byte and BININT beyond. Nothing here exceeds
// it: sizes are those of a checked architecture.
func (p *pickler) integer(v int) {
	if v >= 0 && v <= math.MaxUint8 {
		p.op('K', byte(v))
		return
	}
	p.op('J')
	p.op(binary.LittleEndian.AppendUint32(nil, uint32(int32(v)))...)
}

// decimal is the shortest text that reads back as v.
func decimal(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }

func (p *pickler) tuple(vs ...int) {
	p.op('(')
	for _, v := range vs {
		p.integer(v)
	}
	p.op('t')
}

func (p *pickler) plain(v any) {
	switch v := v.(type) {
	case int:
		p.integer(v)
	case float64:
		p.text(decimal(v))
	case string:
		p.text(v)
	case []int:
		p.op(']', '(')
		for _, e := range v {
			p.integer(e)
		}
		p.op('e')
	case []string:
		p.op(']', '(')
		for _, e := range v {
			p.text(e)
		}
		p.op('e')
	case [][2]string:
		p.op('}', '(')
		for _, e := range v {
			p.text(e[0])
			p.text(e[1])
		}
		p.op('u')
	default:
		panic(fmt.Sprintf("exporter: %T in a checkpoint's config", v))
	}
}

// tensor writes a call of torch._utils._rebuild_tensor_v2 for a contiguous
// float32 tensor that has a storage to itself.
func (p *pickler) tensor(key string, shape []int) {
	size, stride := 1, make([]int, len(shape))
	for i := len(shape) - 1; i >= 0; i-- {
		stride[i] = size
		size *= shape[i]
	}
	p.global("torch._utils", "_rebuild_tensor_v2")
	p.op('(', '(')
	p.text("storage")
	p.global("torch", "FloatStorage")
	p.text(key)
	p.text("cpu")
	p.integer(size)
	p.op('t', 'Q') // the persistent id of the storage
	p.integer(0)   // offset
	p.tuple(shape...)
	p.tuple(stride...)
	p.op(0x89) // requires_grad
	p.global("collections", "OrderedDict")
	p.op(')', 'R', 't', 'R') // backward_hooks, then the call
}

// alignedZip writes stored entries whose data begins at a multiple of
// storageAlignment, with fixed times. The first error is kept for close.
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
	// PyTorch pads by an extra field of its own, "FB", its length and Zs.
	const extraHeader = 4
	start := z.count.n + zipHeader + len(name) + extraHeader
	padding := (storageAlignment - start%storageAlignment) % storageAlignment
	extra := append([]byte{'F', 'B', byte(padding), 0}, bytes.Repeat([]byte{'Z'}, padding)...)
	header := &zip.FileHeader{
		Name: name, Method: zip.Store, Extra: extra, CRC32: crc32.ChecksumIEEE(data),
		CompressedSize64: uint64(len(data)), UncompressedSize64: uint64(len(data)),
	}
	//lint:ignore SA1019 CreateRaw writes this field and not Modified
	header.ModifiedDate = dosEpoch
	w, err := z.zip.CreateRaw(header)
	if err == nil {
		_, err = w.Write(data)
	}
	sum := sha256.Sum256(data)
	h := sha256.Sum256(append(append(z.digest, name...), sum[:]...))
	z.digest, z.err = h[:], err
}

// id is 40 decimal digits that stand for the entries so far: where PyTorch
// hashes names and contents to tell files apart, so does this.
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

// countingWriter knows how far a file has come.
type countingWriter struct {
	w io.Writer
	n int
}

func (c *countingWriter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += n
	return n, err
}
