package dicom

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Limits of the structure.
const (
	// maxNesting bounds the depth of sequences. Real files have up to about eight.
	maxNesting = 32
	// maxFragments bounds the fragments of encapsulated pixel data.
	maxFragments = 1 << 17
	// undefined is the length of a value that ends with a delimiter.
	undefined = 0xffffffff
)

var (
	errTruncated = errors.New("the DICOM file is truncated: copy or export it again")
	errNested    = fmt.Errorf("the DICOM file has sequences nested more than %d deep, which is not read: export it without private sequences", maxNesting)
	errStructure = errors.New("the DICOM file is damaged: an element of its data set is malformed")
)

// tag is a group and an element number.
type tag uint32

// The attributes that are read.
const (
	tagTransferSyntax tag = 0x00020010

	tagSamples        tag = 0x00280002
	tagPhotometric    tag = 0x00280004
	tagPlanar         tag = 0x00280006
	tagFrames         tag = 0x00280008
	tagRows           tag = 0x00280010
	tagColumns        tag = 0x00280011
	tagBitsAllocated  tag = 0x00280100
	tagBitsStored     tag = 0x00280101
	tagHighBit        tag = 0x00280102
	tagRepresentation tag = 0x00280103

	tagWindowCenter   tag = 0x00281050
	tagWindowWidth    tag = 0x00281051
	tagIntercept      tag = 0x00281052
	tagSlope          tag = 0x00281053
	tagWindowFunction tag = 0x00281056

	tagModalityLUT   tag = 0x00283000
	tagLUTDescriptor tag = 0x00283002
	tagLUTData       tag = 0x00283006
	tagVOILUT        tag = 0x00283010

	tagRedDescriptor  tag = 0x00281101
	tagBlueDescriptor tag = 0x00281103
	tagRedPalette     tag = 0x00281201
	tagBluePalette    tag = 0x00281203
	tagRedSegmented   tag = 0x00281221
	tagBlueSegmented  tag = 0x00281223

	tagFrameVOI       tag = 0x00289132
	tagTransformation tag = 0x00289145
	tagShared         tag = 0x52009229
	tagPerFrame       tag = 0x52009230

	tagExtendedOffsets tag = 0x7fe00001
	tagExtendedLengths tag = 0x7fe00002

	tagFloatPixels  tag = 0x7fe00008
	tagDoublePixels tag = 0x7fe00009
	tagPixels       tag = 0x7fe00010

	tagItem            tag = 0xfffee000
	tagItemEnd         tag = 0xfffee00d
	tagSequenceEnd     tag = 0xfffee0dd
	groupMeta              = 0x0002
	groupDelimitations     = 0xfffe
)

// source is a data set's bytes and how its elements are encoded.
type source struct {
	data     []byte
	order    binary.ByteOrder
	implicit bool
}

// element is a data element's header.
type element struct {
	tag    tag
	vr     string // empty in implicit encoding
	length uint32
	start  int // of the value
}

// element reads the header of the element at an offset.
func (s *source) element(at int) (element, error) {
	d := s.data
	if at+8 > len(d) {
		return element{}, errTruncated
	}
	e := element{tag: tag(s.order.Uint16(d[at:]))<<16 | tag(s.order.Uint16(d[at+2:])), start: at + 8}
	if s.implicit || e.tag>>16 == groupDelimitations {
		e.length = s.order.Uint32(d[at+4:])
		return e, nil
	}
	if !isVR(d[at+4:]) {
		return element{}, errStructure
	}
	e.vr = string(d[at+4 : at+6])
	switch e.vr {
	case "OB", "OW", "OF", "OD", "OL", "OV", "SQ", "UC", "UR", "UT", "UN", "SV", "UV":
		if at+12 > len(d) {
			return element{}, errTruncated
		}
		e.length, e.start = s.order.Uint32(d[at+8:]), at+12
	default:
		e.length = uint32(s.order.Uint16(d[at+6:]))
	}
	return e, nil
}

// isVR reports whether the bytes are the two capital letters of a value representation.
func isVR(b []byte) bool {
	return 'A' <= b[0] && b[0] <= 'Z' && 'A' <= b[1] && b[1] <= 'Z'
}

// end returns the offset after a value of defined length.
func (s *source) end(e element) (int, error) {
	if int64(e.length) > int64(len(s.data)-e.start) {
		return 0, errTruncated
	}
	return e.start + int(e.length), nil
}

// place is where an element is: only some places have attributes that are read.
type place int

const (
	ignored place = iota
	topLevel
	functionalGroup
	voiGroup
	transformationGroup
	modalityTable
	voiTable
)

// inside returns the place of the first item of a sequence.
func (p place) inside(sequence tag) place {
	switch {
	case p == topLevel && sequence == tagShared:
		return functionalGroup
	case p == functionalGroup && sequence == tagFrameVOI:
		return voiGroup
	case p == functionalGroup && sequence == tagTransformation:
		return transformationGroup
	case p == topLevel && sequence == tagModalityLUT:
		return modalityTable
	case (p == topLevel || p == voiGroup) && sequence == tagVOILUT:
		return voiTable
	}
	return ignored
}

// isSequence reports whether items of a sequence have attributes that are read.
func isSequence(t tag) bool {
	switch t {
	case tagShared, tagPerFrame, tagFrameVOI, tagTransformation, tagModalityLUT, tagVOILUT:
		return true
	}
	return false
}

// visitor receives the values of defined length in the places that are read.
type visitor struct {
	value func(s *source, e element, p place, value []byte) error
	// group receives the content of each item of the functional groups of frames, which
	// the walk skips.
	group func(g group)
	// pixels receives the pixel data; the walk ends after it.
	pixels func(s *source, e element) error
}

// group is where the functional groups of one frame are.
type group struct {
	source *source
	// start and end are the offsets of the content; end is -1 if it ends with a delimiter.
	start, end int
}

// walk visits the elements from an offset on: up to end, or up to the end of an item if
// end is negative. It returns the offset after them, and whether it met the pixel data.
func (s *source) walk(at, end, depth int, p place, v *visitor) (after int, done bool, err error) {
	if depth > maxNesting {
		return 0, false, errNested
	}
	for end < 0 || at < end {
		e, err := s.element(at)
		if err != nil {
			return 0, false, err
		}
		if e.tag == tagItemEnd && end < 0 {
			return e.start, false, nil
		}
		if e.tag>>16 == groupDelimitations {
			return 0, false, errStructure
		}
		if p == topLevel && (e.tag == tagPixels || e.tag == tagFloatPixels || e.tag == tagDoublePixels) {
			return 0, true, v.pixels(s, e)
		}
		if at, err = s.visit(e, depth, p, v); err != nil {
			return 0, false, err
		}
		if end >= 0 && at > end {
			return 0, false, errStructure
		}
	}
	return at, false, nil
}

// visit visits one element and returns the offset after it.
func (s *source) visit(e element, depth int, p place, v *visitor) (int, error) {
	sequence := isSequence(e.tag)
	if e.length != undefined {
		end, err := s.end(e)
		if err != nil || p == ignored {
			return end, err
		}
		if sequence {
			return end, s.items(e, end, depth, p, v)
		}
		return end, v.value(s, e, p, s.data[e.start:end])
	}
	if e.vr != "" && e.vr != "SQ" && e.vr != "UN" && e.vr != "OB" && e.vr != "OW" {
		return 0, errStructure
	}
	inner := s
	if e.vr == "UN" && !s.implicit { // its content is in implicit little endian
		inner = &source{s.data, binary.LittleEndian, true}
	}
	if !sequence {
		p = ignored
	}
	return inner.delimited(e, depth, p, v)
}

// items visits the items of a sequence of defined length.
func (s *source) items(e element, end, depth int, p place, v *visitor) error {
	at := e.start
	for item := 0; at < end; item++ {
		next, last, err := s.item(e, at, item, depth, p, v)
		if err != nil {
			return err
		}
		if last || next > end {
			return errStructure
		}
		at = next
	}
	return nil
}

// delimited visits the items of a sequence that ends with a delimiter, or skips the
// fragments of encapsulated data, and returns the offset after it.
func (s *source) delimited(e element, depth int, p place, v *visitor) (int, error) {
	at := e.start
	for item := 0; ; item++ {
		next, last, err := s.item(e, at, item, depth, p, v)
		if err != nil || last {
			return next, err
		}
		at = next
	}
}

// item visits one item of a sequence and returns the offset after it. last reports
// whether it was the sequence's delimiter.
func (s *source) item(sequence element, at, item, depth int, p place, v *visitor) (after int, last bool, err error) {
	e, err := s.element(at)
	if err != nil {
		return 0, false, err
	}
	switch {
	case e.tag == tagSequenceEnd:
		return e.start, true, nil
	case e.tag != tagItem:
		return 0, false, errStructure
	}
	perFrame := p == topLevel && sequence.tag == tagPerFrame
	if p = p.inside(sequence.tag); item > 0 {
		p = ignored
	}
	end := -1
	if e.length != undefined {
		if end, err = s.end(e); err != nil {
			return end, false, err
		}
	}
	if perFrame {
		v.group(group{s, e.start, end})
	}
	if end >= 0 && p == ignored {
		return end, false, nil
	}
	after, _, err = s.walk(e.start, end, depth+1, p, v)
	return after, false, err
}
