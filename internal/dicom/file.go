package dicom

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"strconv"
	"strings"
)

// Limits bound the cost of an untrusted file.
type Limits struct {
	// Bytes bounds the inflated data set of a deflated file.
	Bytes int64
	// Size returns an error if an image of w×h pixels is too large.
	Size func(w, h int) error
	// Frames returns an error if a file has too many frames of w×h pixels.
	Frames func(frames, w, h int) error
}

// file is a parsed DICOM file: the attributes that its pixels need, and the encoded
// pixels.
type file struct {
	syntax syntax
	order  binary.ByteOrder

	rows, columns, samples, frames int
	photometric                    string
	planar                         int
	allocated, stored, highBit     int
	signed                         bool
	rescale                        rescale
	window                         window
	modality, voi                  lut
	palette                        [3]palette

	pixelVR   string
	native    []byte
	fragments [][]byte
	// offsets is the basic offset table, and extended and lengths the extended one.
	offsets, extended, lengths []byte
	// parts are the fragments of each frame, if there are several frames of fragments.
	parts  []part
	groups []group // the functional groups of each frame

	has map[tag]bool
}

// maxGroups bounds the functional groups that are kept. There is one for each frame.
const maxGroups = 1 << 16

const (
	preamble  = 128
	signature = "DICM"
)

// parse reads the attributes of the image and finds its pixels. Those of a frame are added
// by file.frame.
func parse(data []byte, lim Limits) (*file, error) {
	f := &file{frames: 1, samples: 1, has: map[tag]bool{}, highBit: -1}
	at := 0
	if len(data) >= preamble+len(signature) && string(data[preamble:preamble+len(signature)]) == signature {
		at = preamble + len(signature)
	}
	at, uid, err := metaInformation(data, at)
	if err != nil {
		return nil, err
	}
	if uid == "" {
		uid = implicitLittle
	}
	if f.syntax, err = syntaxOf(uid); err != nil {
		return nil, err
	}
	s := &source{data: data, order: binary.LittleEndian}
	switch f.syntax.uid {
	case explicitBig:
		s.order = binary.BigEndian
	case deflated:
		if s.data, err = inflate(data[at:], lim.Bytes); err != nil {
			return nil, err
		}
		at = 0
	}
	f.order = s.order
	// Some programs state another encoding than they write: the first element decides.
	s.implicit = at+6 > len(s.data) || !isVR(s.data[at+4:])
	v := &visitor{value: f.take, pixels: f.takePixels, group: func(g group) {
		if len(f.groups) < maxGroups {
			f.groups = append(f.groups, g)
		}
	}}
	_, done, err := s.walk(at, len(s.data), 0, topLevel, v)
	if err != nil {
		return nil, err
	}
	if !done {
		return nil, errors.New("the DICOM file has no image: give a file with pixel data")
	}
	if err := f.check(lim); err != nil {
		return nil, err
	}
	return f, f.divide()
}

// frame returns the attributes of a frame, whose number begins at 0: a copy with those in
// its functional groups.
func (f *file) frame(n int) (*file, error) {
	if n < 0 || n >= f.frames {
		return nil, fmt.Errorf("the DICOM file has %d frames", f.frames)
	}
	of := *f
	of.has = maps.Clone(f.has)
	if n < len(f.groups) {
		g := f.groups[n]
		v := &visitor{value: of.take, pixels: of.takePixels, group: func(group) {}}
		if _, _, err := g.source.walk(g.start, g.end, 1, functionalGroup, v); err != nil {
			return nil, err
		}
	}
	return &of, of.checkTables()
}

// metaInformation reads the transfer syntax in the file meta information, and returns the
// offset of the data set. The syntax is empty if there is none.
func metaInformation(data []byte, at int) (after int, uid string, err error) {
	s := &source{data: data, order: binary.LittleEndian}
	for at+8 <= len(data) && binary.LittleEndian.Uint16(data[at:]) == groupMeta {
		e, err := s.element(at)
		if err != nil {
			return 0, "", err
		}
		if e.length == undefined {
			return 0, "", errStructure
		}
		end, err := s.end(e)
		if err != nil {
			return 0, "", err
		}
		if e.tag == tagTransferSyntax {
			uid = text(data[e.start:end])
		}
		at = end
	}
	return at, uid, nil
}

// inflate returns the data set of a deflated file.
func inflate(packed []byte, limit int64) ([]byte, error) {
	const chunk = 256 << 10
	r := flate.NewReader(bytes.NewReader(packed))
	var chunks [][]byte
	var part []byte // the free part of the last chunk
	for total := int64(0); ; {
		if len(part) == 0 {
			part = make([]byte, chunk)
			chunks = append(chunks, part)
		}
		n, err := r.Read(part)
		part = part[n:]
		switch total += int64(n); {
		case total > limit:
			return nil, fmt.Errorf("the deflated DICOM file unpacks to more than %d bytes, which is the most that are read", limit)
		case err == io.EOF:
			chunks[len(chunks)-1] = chunks[len(chunks)-1][:chunk-len(part)]
			return bytes.Join(chunks, nil), nil
		case err != nil:
			return nil, errors.New("the deflated DICOM file is damaged: export it again")
		}
	}
}

// text returns a value without its padding.
func text(value []byte) string { return strings.Trim(string(value), " \x00") }

// take reads the value of an attribute that is needed, and leaves out all others.
func (f *file) take(s *source, e element, p place, value []byte) error {
	switch p {
	case modalityTable:
		return f.modality.take(s, e, value)
	case voiTable:
		return f.voi.take(s, e, value)
	case transformationGroup:
		if e.tag == tagSlope {
			f.modality = lut{} // its rescale replaces the table of the file
		}
	case voiGroup:
		if e.tag == tagWindowCenter {
			f.voi = lut{} // its window replaces the table of the file
		}
	}
	u16 := func(to *int) error {
		if len(value) < 2 {
			return errStructure
		}
		*to = int(s.order.Uint16(value))
		f.has[e.tag] = true
		return nil
	}
	number := func(to *float64) error {
		v, err := decimal(value)
		if err == nil && text(value) != "" {
			*to, f.has[e.tag] = v, true
		}
		return err
	}
	switch e.tag {
	case tagSamples:
		return u16(&f.samples)
	case tagPhotometric:
		f.photometric = text(value[:min(len(value), 16)])
	case tagPlanar:
		return u16(&f.planar)
	case tagFrames:
		v, err := decimal(value)
		if err != nil || v != math.Trunc(v) || v < 0 || v > math.MaxInt32 {
			return errors.New("the number of frames of the DICOM file is not a number from 1 to 2147483647: export it again")
		}
		f.frames = max(int(v), 1) // some programs write 0 for one
	case tagRows:
		return u16(&f.rows)
	case tagColumns:
		return u16(&f.columns)
	case tagBitsAllocated:
		return u16(&f.allocated)
	case tagBitsStored:
		return u16(&f.stored)
	case tagHighBit:
		return u16(&f.highBit)
	case tagRepresentation:
		var v int
		err := u16(&v)
		f.signed = v == 1
		return err
	case tagSlope:
		return number(&f.rescale.slope)
	case tagIntercept:
		return number(&f.rescale.intercept)
	case tagWindowCenter:
		return number(&f.window.center)
	case tagWindowWidth:
		return number(&f.window.width)
	case tagWindowFunction:
		f.window.function = strings.ToUpper(text(value[:min(len(value), 16)]))
	case tagExtendedOffsets:
		f.extended = value
	case tagExtendedLengths:
		f.lengths = value
	case tagRedSegmented, tagRedSegmented + 1, tagBlueSegmented:
		f.has[tagRedSegmented] = true
	}
	if tagRedDescriptor <= e.tag && e.tag <= tagBlueDescriptor {
		return f.palette[e.tag-tagRedDescriptor].describe(s.order, value)
	}
	if tagRedPalette <= e.tag && e.tag <= tagBluePalette {
		f.palette[e.tag-tagRedPalette].entries = value
	}
	return nil
}

// decimal returns the first number of a decimal string; an empty one is 0.
func decimal(value []byte) (float64, error) {
	first, _, _ := strings.Cut(text(value[:min(len(value), 64)]), `\`)
	if first = strings.TrimSpace(first); first == "" {
		return 0, nil
	}
	v, err := strconv.ParseFloat(first, 64)
	if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
		return 0, errors.New("a number in the DICOM file (frames, rescale or window) cannot be read: export it again")
	}
	return v, nil
}

// takePixels reads the pixel data.
func (f *file) takePixels(s *source, e element) error {
	if e.tag != tagPixels {
		return errors.New("floating-point DICOM images are not read: convert them to integers of up to 16 bits")
	}
	f.pixelVR = e.vr
	if e.length != undefined {
		if f.syntax.encapsulated {
			return errors.New("the pixel data of the DICOM file is not divided into fragments, as its transfer syntax requires: export it again")
		}
		end, err := s.end(e)
		if err == nil {
			f.native = s.data[e.start:end]
		}
		return err
	}
	if !f.syntax.encapsulated {
		return errors.New("the pixel data of the DICOM file is divided into fragments, which its transfer syntax does not have: export it again")
	}
	at := e.start
	for first := true; ; first = false {
		item, err := s.element(at)
		switch {
		case err == errTruncated && !first && at == len(s.data): // the delimiter is missing
			return nil
		case err != nil:
			return err
		case item.tag == tagSequenceEnd:
			return nil
		case item.tag != tagItem || item.length == undefined:
			return errStructure
		}
		end, err := s.end(item)
		if err != nil {
			return err
		}
		if first {
			f.offsets = s.data[item.start:end]
		} else if f.fragments = append(f.fragments, s.data[item.start:end]); len(f.fragments) > maxFragments {
			return fmt.Errorf("the DICOM file has more than %d fragments of pixel data, which is the most that are read", maxFragments)
		}
		at = end
	}
}

// check checks the attributes before any memory for pixels is allocated.
func (f *file) check(lim Limits) error {
	for _, needed := range []tag{tagRows, tagColumns, tagBitsAllocated} {
		if !f.has[needed] {
			return errors.New("the DICOM file states no size or depth of its image: export it again")
		}
	}
	if err := lim.Size(f.columns, f.rows); err != nil {
		return err
	}
	if f.frames > 1 {
		if err := lim.Frames(f.frames, f.columns, f.rows); err != nil {
			return err
		}
	}
	if f.stored == 0 && !f.has[tagBitsStored] {
		f.stored = f.allocated
	}
	if f.highBit < 0 {
		f.highBit = f.stored - 1
	}
	if f.photometric == "" {
		f.photometric = "MONOCHROME2"
	}
	if f.allocated != 1 && f.allocated != 8 && f.allocated != 16 {
		return fmt.Errorf("DICOM images of %d bits allocated per sample are not read: convert them to 8 or 16", f.allocated)
	}
	if f.stored < 1 || f.stored > f.allocated || f.highBit < f.stored-1 || f.highBit >= f.allocated {
		return fmt.Errorf("the DICOM file states %d bits stored up to bit %d of %d allocated, which is impossible: export it again", f.stored, f.highBit, f.allocated)
	}
	return f.checkPhotometric()
}

// checkPhotometric returns an error if the photometric interpretation is not read, or if
// other attributes contradict it.
func (f *file) checkPhotometric() error {
	want := 3
	switch f.photometric {
	case "MONOCHROME1", "MONOCHROME2", "PALETTE COLOR":
		want = 1
	case "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT":
	case "ARGB", "CMYK", "HSV", "YBR_PARTIAL_422", "YBR_PARTIAL_420", "XYB":
		return fmt.Errorf("DICOM images of the photometric interpretation %s are not read: convert them to RGB", f.photometric)
	default:
		return errors.New("the photometric interpretation of the DICOM file is unknown: convert it to MONOCHROME2 or RGB")
	}
	if f.samples != want {
		return fmt.Errorf("the DICOM file states %d samples per pixel for %s, expected %d", f.samples, f.photometric, want)
	}
	if f.planar > 1 {
		return fmt.Errorf("the DICOM file states the planar configuration %d, expected 0 or 1", f.planar)
	}
	if strings.HasPrefix(f.photometric, "YBR_FULL") && f.allocated != 8 {
		return fmt.Errorf("DICOM images of the photometric interpretation %s with more than 8 bits are not read: convert them to RGB", f.photometric)
	}
	if want == 3 && f.allocated == 1 {
		return errors.New("the DICOM file states 1 bit for a colour image, expected 8 or 16")
	}
	if (f.photometric == "YBR_ICT" || f.photometric == "YBR_RCT") && f.syntax.codec != codecJPEG2000 {
		return fmt.Errorf("the photometric interpretation %s is only for JPEG 2000: export the DICOM file again", f.photometric)
	}
	if f.photometric == "PALETTE COLOR" {
		if f.has[tagRedSegmented] {
			return errors.New("DICOM images with a segmented palette are not read: convert them to RGB")
		}
		for i := range f.palette {
			if err := f.palette[i].check(f.order); err != nil {
				return err
			}
		}
	}
	return nil
}
