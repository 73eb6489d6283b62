package models

import "fmt"

// Bounds on the side of an image and what a model says that names none: the
// Python service's default.
const (
	// MaxImageSize is the largest side of the square a network may see: one
	// image of it is 48 MiB of pixels and 192 MiB of floats.
	MaxImageSize = 4096
	// DefaultImageSize is the side assumed of a model that does not say.
	DefaultImageSize = 256
)

// Limits bound what reading a model may cost. A field that is zero means its
// default. At worst the memory taken is about MaxBytes (which the caller holds)
// plus MaxUnpacked plus four bytes for each of MaxParameters.
type Limits struct {
	// MaxBytes is the largest file read, in bytes.
	MaxBytes int64
	// MaxParameters is the largest number of weights and biases in all.
	MaxParameters int64
	// MaxUnpacked is how much may be unpacked from the zips in one file, those
	// inside it included.
	MaxUnpacked int64
	// MaxNodes is how many operators an ONNX graph may have.
	MaxNodes int
	// MaxSide is the largest side of the square that the network may see, in
	// pixels, MaxImageSize at most. What a run takes grows with its square.
	MaxSide int
}

// DefaultLimits allow networks 20 times the size of the default one, which has
// 776,579 parameters in 3.1 MB: files of 64 MiB, 16 Mi parameters, 192 MiB
// unpacked and 4096 operators, where the default network has 16 and what
// exporters write around it is some dozens more.
func DefaultLimits() Limits {
	return Limits{MaxBytes: 64 << 20, MaxParameters: 16 << 20, MaxUnpacked: 192 << 20, MaxNodes: 4096, MaxSide: MaxImageSize}
}

func (l Limits) withDefaults() Limits {
	d := DefaultLimits()
	if l.MaxBytes == 0 {
		l.MaxBytes = d.MaxBytes
	}
	if l.MaxParameters == 0 {
		l.MaxParameters = d.MaxParameters
	}
	if l.MaxUnpacked == 0 {
		l.MaxUnpacked = d.MaxUnpacked
	}
	if l.MaxNodes == 0 {
		l.MaxNodes = d.MaxNodes
	}
	if l.MaxSide == 0 {
		l.MaxSide = d.MaxSide
	}
	return l
}

// architectureOf is ArchitectureOf within the limits: it returns ErrTooLarge,
// wrapped, as well, when the network has too many parameters.
func (l Limits) architectureOf(shapes StateDict) (Architecture, error) {
	a, err := ArchitectureOf(shapes)
	if err == nil {
		err = l.parameters(a)
	}
	return a, err
}

// parameters returns ErrTooLarge, wrapped, when a network has too many.
func (l Limits) parameters(a Architecture) error {
	n := int64(0)
	for _, p := range a.Parameters() {
		n += int64(p.Size())
	}
	if n > l.MaxParameters {
		return fmt.Errorf("%w: a %s network of %d parameters, at most %d are read", ErrTooLarge, a, n, l.MaxParameters)
	}
	return nil
}

// statement is what a model file says about itself beside its weights.
type statement struct {
	imageSize int // 0: not said
	metadata  Metadata
	threshold bool   // metadata.Threshold was said
	whole     []byte // nil, or a whole metadata.json, which then alone counts
}

func (s *statement) set(key string, v float64) {
	switch key {
	case "threshold":
		s.metadata.Threshold, s.threshold = v, true
	case "mean_error":
		s.metadata.MeanError = v
	case "std_error":
		s.metadata.StdError = v
	}
}

// contents is what the reader of a format takes from a file.
type contents struct {
	architecture Architecture
	weights      StateDict
	normality    StateDict
	said         statement
}

// Read reads a model from the bytes of a file, telling the format by its
// content: a PyTorch zip checkpoint, an ONNX file, or the zip that a training
// gives, in which metadata.json counts before what the checkpoint says.
//
// The bytes may be anybody's. Nothing in them is executed, what is allocated is
// bounded by lim, and the model is returned only when its weights are those of
// an Architecture, all finite, the graph of an ONNX file computes it, its image
// size fits, and its metadata can base a verdict. The errors are ErrFormat, ErrUnsafe, ErrTooLarge, ErrArchitecture
// and ErrMetadata, wrapped. Metadata that is there but unusable is an error: a
// verdict by another threshold than the model's would be worse than none.
func Read(data []byte, lim Limits) (*Model, error) {
	lim = lim.withDefaults()
	if int64(len(data)) > lim.MaxBytes {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are read", ErrTooLarge, len(data), lim.MaxBytes)
	}
	var c contents
	var format Format
	var err error
	switch {
	case len(data) == 0:
		return nil, fmt.Errorf("%w: it is empty", ErrFormat)
	case isZip(data):
		c, format, err = readZip(data, lim)
	case isBarePickle(data):
		return nil, fmt.Errorf("%w: a pickle without a zip around it, as PyTorch wrote before 1.6, expected a zip checkpoint; "+
			`convert it with torch.save(torch.load("old.pt", weights_only=True), "new.pt")`, ErrFormat)
	default:
		format = FormatONNX
		c, err = readONNX(data, lim)
	}
	if err != nil {
		return nil, err
	}
	m, err := c.model()
	if err != nil {
		return nil, err
	}
	if m.ImageSize > lim.MaxSide {
		return nil, fmt.Errorf("%w: its images are %d×%d pixels, at most %d×%d are taken", ErrTooLarge, m.ImageSize, m.ImageSize, lim.MaxSide, lim.MaxSide)
	}
	m.Format, m.SHA256 = format, Identity(data)
	return m, nil
}

// isBarePickle tells PyTorch's former file format, and any other pickle of
// protocol 2 and later, by its first instruction.
func isBarePickle(data []byte) bool {
	return len(data) > 1 && data[0] == 0x80 && data[1] <= 5
}

// readZip tells the two kinds of zip apart.
func readZip(data []byte, lim Limits) (contents, Format, error) {
	budget := lim.MaxUnpacked
	a, err := openArchive(data, &budget)
	if err != nil {
		return contents{}, "", err
	}
	root, err := checkpointRoot(a)
	if err != nil {
		return contents{}, "", err
	}
	if root != "" {
		c, err := readCheckpoint(a, root, lim)
		return c, FormatCheckpoint, err
	}
	c, err := readBundle(a, lim)
	return c, FormatBundle, err
}

// model checks the contents of a file as a whole.
func (c contents) model() (*Model, error) {
	if name, ok := c.weights.Finite(); !ok {
		return nil, fmt.Errorf("%w: %s has elements that are not finite numbers", ErrFormat, name)
	}
	md, err := c.said.complete()
	if err != nil {
		return nil, err
	}
	size := md.ImageSize
	if size == 0 {
		size = c.said.imageSize
	}
	if size == 0 {
		size = DefaultImageSize
	}
	if stride := c.architecture.Stride(); size < stride || size > MaxImageSize || size%stride != 0 {
		return nil, fmt.Errorf("%w: image_size is %d, expected a multiple of %d from %d to %d for a %s network",
			ErrMetadata, size, stride, stride, MaxImageSize, c.architecture)
	}
	if md.Architecture != nil && !md.Architecture.Equal(c.architecture) {
		return nil, fmt.Errorf("%w: it is that of a %.200s network, the weights are those of a %s one", ErrMetadata, md.Architecture, c.architecture)
	}
	md.ImageSize, md.ModelType = size, ModelType
	normality, err := c.normal(md, size)
	if err != nil {
		return nil, err
	}
	return &Model{Architecture: c.architecture, Weights: c.weights, Reference: normality, ImageSize: size, Metadata: md}, nil
}

// normal gives the tensors of normality of a model that decides by them.
func (c contents) normal(md Metadata, size int) (StateDict, error) {
	measure, _ := md.Measure()
	if measure == MeasureMSE {
		return nil, nil
	}
	if err := fitsNormality(c.normality, measure, size); err != nil {
		return nil, err
	}
	if name, ok := c.normality.Finite(); !ok {
		return nil, fmt.Errorf("%w: %s has elements that are not finite numbers", ErrFormat, name)
	}
	return c.normality.Ordered(c.normality.expected(size)), nil
}

// complete gives the metadata that a statement amounts to: the whole
// metadata.json when there is one, else the single keys.
func (s statement) complete() (Metadata, error) {
	if s.whole != nil {
		return ParseMetadata(s.whole)
	}
	md := s.metadata
	if !s.threshold {
		md.Threshold = DefaultThreshold
	}
	return md, md.Validate()
}
