package models

import "fmt"

// Bounds on the image size.
const (
	// MaxImageSize is the largest side of the network's square input, in pixels. An
	// image of that size takes 48 MiB as bytes and 192 MiB as floats.
	MaxImageSize = 4096
	// DefaultImageSize is the image size of a model file that does not specify one,
	// which is the default of the Python service.
	DefaultImageSize = 256
)

// Limits bound the resources for reading a model. A zero field means its default. The
// largest amount of memory is about MaxBytes (held by the caller) plus MaxUnpacked
// plus four bytes for each of MaxParameters.
type Limits struct {
	// MaxBytes is the largest size of the file, in bytes.
	MaxBytes int64
	// MaxParameters is the largest total number of weights and biases, and
	// separately of elements of the reference statistics.
	MaxParameters int64
	// MaxUnpacked is the largest number of bytes unpacked from all zips in the file,
	// nested ones included.
	MaxUnpacked int64
	// MaxNodes is the largest number of nodes of an ONNX graph.
	MaxNodes int
	// MaxSide is the largest side of the network's square input, in pixels, at most
	// MaxImageSize. The cost of an inference grows with its square.
	MaxSide int
}

// DefaultLimits returns limits for networks 20 times the size of the default one,
// which has 776,579 parameters in 3.1 MB: files of 64 MiB, 16 Mi parameters, 192 MiB
// unpacked and 4096 nodes. The default network has 16 nodes; exporters add dozens.
func DefaultLimits() Limits {
	return Limits{MaxBytes: 64 << 20, MaxParameters: 16 << 20, MaxUnpacked: 192 << 20, MaxNodes: 4096, MaxSide: MaxImageSize}
}

// withDefaults returns l with zero fields replaced by their defaults.
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

// architectureOf is ArchitectureOf, and also returns ErrTooLarge, wrapped, when the
// network has more than MaxParameters.
func (l Limits) architectureOf(shapes StateDict) (Architecture, error) {
	a, err := ArchitectureOf(shapes)
	if err == nil {
		err = l.checkParameters(a)
	}
	return a, err
}

// checkParameters returns ErrTooLarge, wrapped, when a network has more than
// MaxParameters.
func (l Limits) checkParameters(a Architecture) error {
	n := int64(0)
	for _, p := range a.Parameters() {
		n += int64(p.Size())
	}
	if n > l.MaxParameters {
		return fmt.Errorf("%w: a %s network of %d parameters, at most %d are read", ErrTooLarge, a, n, l.MaxParameters)
	}
	return nil
}

// fileMetadata is the metadata in a model file.
type fileMetadata struct {
	imageSize    int // 0: not specified
	metadata     Metadata
	hasThreshold bool   // metadata.Threshold is set
	json         []byte // a complete metadata.json, which overrides metadata; or nil
}

// set sets the number with this key in a config or in ONNX metadata.
func (s *fileMetadata) set(key string, v float64) {
	switch key {
	case "threshold":
		s.metadata.Threshold, s.hasThreshold = v, true
	case "mean_error":
		s.metadata.MeanError = v
	case "std_error":
		s.metadata.StdError = v
	}
}

// contents is the result of a format's reader, before the checks across its parts.
type contents struct {
	architecture Architecture
	weights      StateDict
	reference    StateDict
	metadata     fileMetadata
}

// Read reads a model from the bytes of a file. It detects the format from the content:
// a PyTorch zip checkpoint, an ONNX file, or the zip that a training writes, in which
// metadata.json overrides the metadata of the checkpoint.
//
// The bytes may be untrusted: Read executes nothing and bounds its memory by lim. It
// returns a model only when its weights are finite and fit an Architecture, the graph
// of an ONNX file computes that network, its image size is valid, and its metadata and
// reference statistics are sufficient for a verdict. The errors are ErrFormat,
// ErrUnsafe, ErrTooLarge, ErrArchitecture and ErrMetadata, wrapped. Unusable metadata
// is an error and never replaced by defaults, since a verdict with a wrong threshold
// is worse than none.
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
	if s := m.Input(); max(s.W, s.H) > lim.MaxSide {
		return nil, fmt.Errorf("%w: its images are %v pixels, at most %v are allowed", ErrTooLarge, s, Square(lim.MaxSide))
	}
	m.Format, m.SHA256 = format, Identity(data)
	return m, nil
}

// isBarePickle reports whether data starts as a pickle of protocol 2 or later, which is
// PyTorch's file format before version 1.6.
func isBarePickle(data []byte) bool {
	return len(data) > 1 && data[0] == 0x80 && data[1] <= 5
}

// readZip reads a checkpoint or a training's zip.
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

// model checks that the parts fit together and returns the model.
func (c contents) model() (*Model, error) {
	if name, ok := c.weights.Finite(); !ok {
		return nil, fmt.Errorf("%w: %s has elements that are not finite numbers", ErrFormat, name)
	}
	md, err := c.metadata.resolve()
	if err != nil {
		return nil, err
	}
	size := md.ImageSize
	if size == 0 {
		size = c.metadata.imageSize
	}
	input := Size{}
	if p := md.Preprocessing; p != nil {
		input = Size{p.Width, p.Height}
	}
	switch {
	case input != (Size{}) && size != 0:
		return nil, fmt.Errorf("%w: image_size is %d and the input is %v pixels, expected one of the two", ErrMetadata, size, input)
	case input == (Size{}):
		if size == 0 {
			size = DefaultImageSize
		}
		input = Square(size)
	}
	if err := c.architecture.CheckInput(input); err != nil {
		return nil, err
	}
	if md.Architecture != nil && !md.Architecture.Equal(c.architecture) {
		return nil, fmt.Errorf("%w: it describes a %.200s network, the weights are those of a %s network", ErrMetadata, md.Architecture, c.architecture)
	}
	md.ImageSize, md.ModelType = size, ModelType
	reference, err := c.referenceFor(md, input)
	if err != nil {
		return nil, err
	}
	return &Model{Architecture: c.architecture, Weights: c.weights, Reference: reference, ImageSize: size, Metadata: md}, nil
}

// referenceFor returns the reference statistics in file order, nil when the model
// decides by MeasureMSE.
func (c contents) referenceFor(md Metadata, size Size) (StateDict, error) {
	measure, _ := md.Measure()
	if err := md.checkTiles(size); err != nil {
		return nil, err
	}
	if measure == MeasureMSE {
		return nil, nil
	}
	if measure == MeasureBandMahalanobis && md.Preprocessing.Masked() {
		return nil, fmt.Errorf("%w: it decides by %s and has a border or a region, which that measure cannot leave out", ErrMetadata, measure)
	}
	if err := checkReferenceShapes(c.reference, measure, size, md.Preprocessing.places()); err != nil {
		return nil, err
	}
	if name, ok := c.reference.Finite(); !ok {
		return nil, fmt.Errorf("%w: %s has elements that are not finite numbers", ErrFormat, name)
	}
	return c.reference.Ordered(c.reference.expected(size)), nil
}

// resolve returns the complete metadata.json when there is one, else the single keys
// with DefaultThreshold for a missing threshold.
func (s fileMetadata) resolve() (Metadata, error) {
	if s.json != nil {
		return ParseMetadata(s.json)
	}
	md := s.metadata
	if !s.hasThreshold {
		md.Threshold = DefaultThreshold
	}
	return md, md.Validate()
}
