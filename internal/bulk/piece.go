package bulk

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/imagefile"
)

// A piece is a run of consecutive images of the zip. Encoded it is a byte with the version
// of the format and the number of images, and for each image its name, the reason why it
// cannot be read (empty for one that can), and the content of its file. Each of the three
// is preceded by its length. Numbers are uvarints.

const (
	// pieceVersion is the version of the format.
	pieceVersion = 1
	// pieceImages and pieceBytes are the largest number of images of a piece and the size
	// of its files above which it gets no more images. A piece of many small images takes
	// a worker well below a second, so that no worker has much left when the others have
	// nothing more; and the cost of moving a piece is small against that of judging it.
	pieceImages = 128
	pieceBytes  = 480 << 10
	// pieceNames is the same for the bytes of its names. In the JSON of a result, a byte of
	// a name may become six.
	pieceNames = 32 << 10
	// resultBytes is the same for its result, and verdictBytes an upper bound of a verdict in
	// it without the names of classes.
	resultBytes  = 400 << 10
	verdictBytes = 1 << 10
	// frameBytes is an upper bound of the verdict of a frame.
	frameBytes = 160
	// imageOverhead is an upper bound of the bytes of an image in a piece besides its name,
	// reason and content.
	imageOverhead = 3 * binary.MaxVarintLen64
)

var errPiece = errors.New("bulk: the piece is damaged")

// image is an image of a piece.
type image struct {
	name   string
	reason string // why it cannot be read, or ""
	data   []byte // part of the encoded piece
}

// LineBytes returns an upper bound of the bytes of a verdict in the results of a model with
// these names of classes, without the name of its image.
func LineBytes(classes []string) int {
	// JSON of any strings cannot fail.
	names, _ := json.Marshal(classes)
	return verdictBytes + len(names)
}

// lineBytes returns an upper bound of the bytes of the result of image i without its name. A
// DICOM file has the verdicts of its frames, of which there may be 8 in a byte.
func lineBytes(images *dataset.ImageList, i, line int) int64 {
	if dataset.MayBeDICOM(images.Name(i)) {
		return int64(line) + frameBytes*min(imagefile.MaxFrames, 8*min(images.Bytes(i), imagefile.MaxFrames))
	}
	return int64(line)
}

// maxResults is the largest size of the results of a job, in bytes.
const maxResults = 1 << 30

// CheckResults returns dataset.ErrTooLarge, wrapped, if the results of images may be larger
// than is allowed, with lines of LineBytes.
func CheckResults(images *dataset.ImageList, line int) error {
	n := int64(0)
	for i := range images.Len() {
		n += lineBytes(images, i, line)
	}
	if line > maxResult/2 || n > maxResults {
		return fmt.Errorf("%w: the results of %d images, each with the names of classes of the model, take up to %d bytes: send fewer images, or use a model with fewer classes",
			dataset.ErrTooLarge, images.Len(), n)
	}
	return nil
}

// plan returns the ends of the pieces of a zip: piece i has the images from end i-1 to end
// i. It depends only on the directory of the zip, the limits and the size of a line, so that
// all coordinators of a job cut the same pieces.
func plan(images *dataset.ImageList, lim imagefile.Limits, line int) []int {
	var ends []int
	n, size, names, results := 0, int64(0), 0, int64(0)
	for i := range images.Len() {
		fileBytes := contentBytes(images, i, lim)
		name := len(images.Name(i))
		result := lineBytes(images, i, line)
		if n > 0 && (n == pieceImages || size+fileBytes > pieceBytes || names+name > pieceNames || results+result > resultBytes) {
			ends = append(ends, i)
			n, size, names, results = 0, 0, 0, 0
		}
		n, size, names, results = n+1, size+fileBytes, names+name, results+result
	}
	return append(ends, images.Len())
}

// contentBytes returns the size of the content of image i in a piece: 0 for an image that
// cannot be read.
func contentBytes(images *dataset.ImageList, i int, lim imagefile.Limits) int64 {
	if images.Refusal(i) != "" || lim.CheckBytes(images.Bytes(i)) != nil {
		return 0
	}
	return images.Bytes(i)
}

// encode returns the piece with the images from one index up to another. The memory that
// it takes is that of its images as the zip's directory states them, which is bounded by
// the limits for all but the first image of a piece, and by plan.
func encode(images *dataset.ImageList, from, to int, lim imagefile.Limits) []byte {
	size := 1 + binary.MaxVarintLen64
	for i := from; i < to; i++ {
		size += imageOverhead + len(images.Name(i)) + len(images.Refusal(i)) + int(contentBytes(images, i, lim))
	}
	b := append(make([]byte, 0, size), pieceVersion)
	b = binary.AppendUvarint(b, uint64(to-from))
	for i := from; i < to; i++ {
		b = appendText(b, images.Name(i))
		start := len(b)
		reason := images.Refusal(i)
		if reason == "" {
			if err := lim.CheckBytes(images.Bytes(i)); err != nil {
				reason = err.Error()
			}
		}
		if reason == "" {
			n := int(images.Bytes(i))
			b = appendText(b, "")
			b = binary.AppendUvarint(b, uint64(n))
			content := len(b)
			b = b[:content+n]
			err := images.Read(i, b[content:])
			if err == nil {
				continue
			}
			reason = err.Error()
		}
		b = appendText(b[:start], reason)
		b = appendText(b, "")
	}
	return b
}

func appendText(b []byte, text string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(text))), text...)
}

// decode returns the images of a piece. It returns errPiece.
func decode(piece []byte) ([]image, error) {
	if len(piece) == 0 || piece[0] != pieceVersion {
		return nil, errPiece
	}
	r := reader{rest: piece[1:]}
	n := r.number()
	if n > pieceImages {
		return nil, errPiece
	}
	images := make([]image, 0, n)
	for range n {
		images = append(images, image{name: string(r.field()), reason: string(r.field()), data: r.field()})
	}
	if r.damaged || len(r.rest) > 0 {
		return nil, errPiece
	}
	return images, nil
}

// reader reads the fields of a piece.
type reader struct {
	rest    []byte
	damaged bool
}

func (r *reader) number() uint64 {
	v, n := binary.Uvarint(r.rest)
	if n <= 0 {
		r.damaged, r.rest = true, nil
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

func (r *reader) field() []byte {
	n := r.number()
	if n > uint64(len(r.rest)) {
		r.damaged, r.rest = true, nil
		return nil
	}
	f := r.rest[:n:n]
	r.rest = r.rest[n:]
	return f
}
