package imagefile

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/deepmed/anomaly/internal/dicom"
)

// SniffBytes is the number of bytes from a file's beginning that Sniff needs.
const SniffBytes = 4096

// Format is the kind of a file, by its content. The value is the name for messages.
type Format string

// The formats that Decode reads.
const (
	PNG  Format = "PNG"
	JPEG Format = "JPEG"
	GIF  Format = "GIF"
	BMP  Format = "BMP"
	TIFF Format = "TIFF"
	WebP Format = "WebP"
	// DICOM is also a file without the preamble, if its first elements show it.
	DICOM Format = "DICOM"
)

// Some of the formats that Decode does not read.
const (
	Unknown    Format = ""
	Empty      Format = "empty"
	Text       Format = "text"
	HTML       Format = "HTML"
	SVG        Format = "SVG"
	LFSPointer Format = "Git LFS pointer"
	Zip        Format = "zip"
	HEIC       Format = "HEIC"
	AVIF       Format = "AVIF"
	JPEGXL     Format = "JPEG XL"
	JPEG2000   Format = "JPEG 2000"
	TGA        Format = "TGA"
)

// Kind is the kind of content of a format.
type Kind int

// The kinds of formats.
const (
	ImageKind    Kind = iota
	RawKind           // a camera's raw image
	DocumentKind      // pages
	ArchiveKind
	VideoKind
	OtherKind // no image: a text, a program, …
)

// Kind returns the kind of the format.
func (f Format) Kind() Kind { return kinds[f] }

// signature is the bytes at an offset of a file, '?' for any.
type signature struct {
	at     int
	magic  string
	format Format
	kind   Kind
}

// signatures are the formats that are recognized by fixed bytes. The first match counts.
var signatures = []signature{
	{0, "\x89PNG\r\n\x1a\n", PNG, ImageKind},
	{0, "\xff\xd8\xff\xf7", "JPEG-LS", ImageKind},
	{0, "\xff\xd8\xff", JPEG, ImageKind},
	{0, "GIF87a", GIF, ImageKind},
	{0, "GIF89a", GIF, ImageKind},
	{0, "RIFF????WEBP", WebP, ImageKind},
	{0, "RIFF????AVI ", "AVI video", VideoKind},
	{0, "RIFF????WAVE", "WAVE audio (RIFF)", OtherKind},
	{0, "\x00\x00\x00\x0cJXL \r\n\x87\n", JPEGXL, ImageKind},
	{0, "\xff\x0a", JPEGXL, ImageKind},
	{0, "\x00\x00\x00\x0cjP  \r\n\x87\n", JPEG2000, ImageKind},
	{0, "\xff\x4f\xff\x51", JPEG2000, ImageKind},
	{0, "II\xbc", "JPEG XR", ImageKind},
	{128, "DICM", DICOM, ImageKind},
	{0, "8BPS", "Photoshop (PSD)", ImageKind},
	{0, "%PDF-", "PDF", DocumentKind},
	{0, "%!PS", "PostScript", DocumentKind},
	{0, "AT&TFORM", "DjVu", DocumentKind},
	{0, "\x76\x2f\x31\x01", "OpenEXR", ImageKind},
	{0, "#?RADIANCE", "Radiance HDR", ImageKind},
	{0, "#?RGBE", "Radiance HDR", ImageKind},
	{0, "FUJIFILMCCD-RAW", "camera raw (RAF)", RawKind},
	{0, "IIRO", "camera raw (ORF)", RawKind},
	{0, "IIRS", "camera raw (ORF)", RawKind},
	{0, "MMOR", "camera raw (ORF)", RawKind},
	{0, "IIU\x00", "camera raw (RW2)", RawKind},
	{0, "II\x1a\x00\x00\x00HEAPCCDR", "camera raw (CRW)", RawKind},
	{0, "\x00MRM", "camera raw (MRW)", RawKind},
	{0, "FOVb", "camera raw (X3F)", RawKind},
	{0, "qoif", "QOI", ImageKind},
	{0, "gimp xcf", "GIMP (XCF)", ImageKind},
	{0, "DDS ", "DDS", ImageKind},
	{0, "icns", "Apple icon (ICNS)", ImageKind},
	{0, "BPG\xfb", "BPG", ImageKind},
	{0, "FLIF", "FLIF", ImageKind},
	{0, "SIMPLE  =", "FITS", ImageKind},
	{0, "\x01\xda", "SGI", ImageKind},
	{0, "\x59\xa6\x6a\x95", "Sun raster", ImageKind},
	{0, "\xd7\xcd\xc6\x9a", "WMF", ImageKind},
	{40, " EMF", "EMF", ImageKind},
	{0, "\x93NUMPY", "NumPy array", ImageKind},
	{0, "\x89HDF\r\n\x1a\n", "HDF5", ImageKind},
	{0, "MATLAB 5.0", "MATLAB", ImageKind},
	{344, "n+1\x00", "NIfTI", ImageKind},
	{0, "PK\x03\x04", Zip, ArchiveKind},
	{0, "PK\x05\x06", Zip, ArchiveKind},
	{0, "7z\xbc\xaf\x27\x1c", "7z", ArchiveKind},
	{0, "Rar!\x1a\x07", "RAR", ArchiveKind},
	{0, "\x1f\x8b", "gzip", ArchiveKind},
	{0, "BZh", "bzip2", ArchiveKind},
	{0, "\xfd7zXZ\x00", "xz", ArchiveKind},
	{0, "\x28\xb5\x2f\xfd", "Zstandard", ArchiveKind},
	{257, "ustar", "tar", ArchiveKind},
	{0, "\x1a\x45\xdf\xa3", "Matroska or WebM video", VideoKind},
	{0, "\x00\x00\x01\xba", "MPEG video", VideoKind},
	{0, "\x00\x00\x01\xb3", "MPEG video", VideoKind},
	{0, "\x00\x05\x16\x07", "AppleDouble (a macOS “._” file)", OtherKind},
	{0, "\x00\x05\x16\x00", "AppleSingle", OtherKind},
	{0, "\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "Microsoft Office or Thumbs.db", OtherKind},
	{0, "version https://git-lfs", LFSPointer, OtherKind},
	{0, "SQLite format 3\x00", "SQLite", OtherKind},
	{0, "\x7fELF", "program", OtherKind},
}

// brands are the formats of files in boxes (ISO base media), by their first brand.
var brands = map[string]signature{
	"heic": {format: HEIC}, "heix": {format: HEIC}, "heim": {format: HEIC}, "heis": {format: HEIC},
	"hevc": {format: HEIC}, "hevx": {format: HEIC}, "mif1": {format: HEIC}, "msf1": {format: HEIC},
	"mif2": {format: HEIC}, "mif3": {format: HEIC}, "avif": {format: AVIF}, "avis": {format: AVIF},
	"crx ": {format: "camera raw (CR3)", kind: RawKind},
	"jxl ": {format: JPEGXL}, "jp2 ": {format: JPEG2000}, "jpx ": {format: JPEG2000},
}

// kinds are the kinds of formats; the missing ones are ImageKind.
var kinds = func() map[Format]Kind {
	m := map[Format]Kind{
		Unknown: OtherKind, Empty: OtherKind, Text: OtherKind, HTML: OtherKind, "XML": OtherKind,
		"MP4 or QuickTime video": VideoKind,
	}
	for _, s := range signatures {
		m[s.format] = s.kind
	}
	for _, s := range brands {
		m[s.format] = s.kind
	}
	for _, f := range tiffRaws {
		m[f] = RawKind
	}
	return m
}()

// String returns the name of the format.
func (f Format) String() string {
	if f == Unknown {
		return "unknown"
	}
	return string(f)
}

// Readable reports whether Decode reads the format.
func (f Format) Readable() bool { return codecs[f] != nil }

// Sniff returns the format of a file by its first bytes, and reports whether Decode
// reads that format. SniffBytes of them are enough; a shorter file is passed whole.
// The format is Unknown if the bytes are not recognized.
func Sniff(head []byte) (f Format, readable bool) {
	f = sniff(head)
	return f, f.Readable()
}

func sniff(head []byte) Format {
	if len(head) == 0 {
		return Empty
	}
	for _, s := range signatures {
		if len(head) >= s.at && matches(head[s.at:], s.magic) {
			return s.format
		}
	}
	switch {
	case dicom.WithoutPreamble(head):
		return DICOM
	case isBMP(head):
		return BMP
	case isTIFF(head):
		return sniffTIFF(head)
	case len(head) >= 12 && string(head[4:8]) == "ftyp":
		return sniffBrand(head)
	case isPNM(head):
		return "PNM"
	case len(head) >= 6 && (matches(head, "\x00\x00\x01\x00") || matches(head, "\x00\x00\x02\x00")) && head[4] != 0 && head[5] == 0:
		return "icon (ICO)"
	case isPCX(head):
		return "PCX"
	case isTGA(head):
		return TGA
	}
	return sniffText(head)
}

func matches(data []byte, magic string) bool {
	if len(data) < len(magic) {
		return false
	}
	for i := range len(magic) {
		if magic[i] != '?' && magic[i] != data[i] {
			return false
		}
	}
	return true
}

// sniffBrand returns the format of a file in boxes by its brands.
func sniffBrand(head []byte) Format {
	end := min(int(binary.BigEndian.Uint32(head)), len(head), 256)
	generic := false
	for p := 8; p+4 <= end; p += 4 {
		if p == 12 {
			continue // the version
		}
		switch s, ok := brands[string(head[p:p+4])]; {
		case ok && s.format == HEIC && strings.HasPrefix(string(head[p:p+4]), "m"):
			generic = true // an AVIF has these brands, too
		case ok:
			return s.format
		}
	}
	if generic {
		return HEIC
	}
	return "MP4 or QuickTime video"
}

// tiffRaws are the raw formats of cameras that are a TIFF, by the beginning of the maker.
var tiffRaws = map[string]Format{
	"NIKON": "camera raw (NEF)", "SONY": "camera raw (ARW)", "PENTAX": "camera raw (PEF)",
	"SAMSUNG": "camera raw (SRW)", "DNG": "camera raw (DNG)", "Canon": "camera raw (CR2)", "": "camera raw",
}

// sniffTIFF separates the raw formats of cameras from TIFF. Their first image is a
// thumbnail.
func sniffTIFF(head []byte) Format {
	if len(head) >= 11 && string(head[8:10]) == "CR" {
		return tiffRaws["Canon"]
	}
	if len(head) < 8 {
		return TIFF
	}
	d, _ := readTIFFDirectory(head)
	if _, ok := d.entries[tagDNGVersion]; ok {
		return tiffRaws["DNG"]
	}
	// A raw file has a reduced image first and the sensor's in another directory.
	const reduced = 1
	_, others := d.entries[tagSubIFDs]
	if !others || d.first(tagSubfileType)&reduced == 0 {
		return TIFF
	}
	make := d.entries[tagMake]
	if make.kind != typeASCII {
		return TIFF // a pyramid
	}
	maker := strings.ToUpper(string(make.value))
	for name, f := range tiffRaws {
		if name != "" && strings.HasPrefix(maker, name) {
			return f
		}
	}
	return tiffRaws[""]
}

// isPNM reports whether the bytes begin as one of the portable anymaps.
func isPNM(head []byte) bool {
	if len(head) < 3 || head[0] != 'P' {
		return false
	}
	space := head[2] == '\n' || head[2] == '\r' || head[2] == ' ' || head[2] == '\t'
	return space && ('1' <= head[1] && head[1] <= '7' || head[1] == 'F' || head[1] == 'f')
}

// isPCX reports whether the bytes are the header of a PCX.
func isPCX(head []byte) bool {
	return len(head) >= 128 && head[0] == 10 && head[1] <= 5 && head[2] <= 1 && head[64] == 0 &&
		(head[3] == 1 || head[3] == 2 || head[3] == 4 || head[3] == 8)
}

// isTGA reports whether the bytes can be the header of a TGA, which has no signature.
func isTGA(head []byte) bool {
	if len(head) < 18 || head[1] > 1 {
		return false
	}
	w, h := binary.LittleEndian.Uint16(head[12:]), binary.LittleEndian.Uint16(head[14:])
	bits := head[16]
	switch head[2] {
	case 1, 9: // palette
		if head[1] != 1 || bits != 8 && bits != 16 || head[7] != 15 && head[7] != 16 && head[7] != 24 && head[7] != 32 {
			return false
		}
	case 2, 10: // colours
		if bits != 15 && bits != 16 && bits != 24 && bits != 32 {
			return false
		}
	case 3, 11: // grey
		if bits != 8 && bits != 16 {
			return false
		}
	default:
		return false
	}
	if head[1] == 0 && !bytes.Equal(head[3:8], make([]byte, 5)) {
		return false
	}
	return w > 0 && h > 0 && head[17]&0xc0 == 0
}

// sniffText returns the format of a text, or Unknown.
func sniffText(head []byte) Format {
	text := bytes.TrimPrefix(head[:min(len(head), SniffBytes)], []byte("\xef\xbb\xbf"))
	lower := bytes.ToLower(bytes.TrimLeft(text, " \t\r\n"))
	begins := func(s string) bool { return bytes.HasPrefix(lower, []byte(s)) }
	switch {
	case begins("<svg"), (begins("<?xml") || begins("<!doctype svg") || begins("<!--")) && bytes.Contains(lower, []byte("<svg")):
		return SVG
	case begins("<!doctype html"), begins("<html"), begins("<head"), begins("<body"), begins("<script"):
		return HTML
	case begins("<?xml"):
		return "XML"
	}
	for len(text) > 0 {
		r, n := utf8.DecodeRune(text)
		if r == utf8.RuneError && n <= 1 && len(text) >= utf8.UTFMax || r < ' ' && r != '\t' && r != '\n' && r != '\r' && r != '\f' && r != 0x1b {
			return Unknown
		}
		text = text[n:]
	}
	return Text
}

// Remedy returns why an image of the format is not read and what to do, in a sentence.
func (f Format) Remedy() string { return f.refusal(nil) }

// refusal returns why a file of the format is not read and what to do. The sentence
// follows "not a readable image: ".
func (f Format) refusal(data []byte) string {
	const expected = "expected PNG, JPEG, GIF, BMP, TIFF, WebP or DICOM"
	begin := fmt.Sprintf("%d bytes that begin with %q", len(data), data[:min(len(data), 8)])
	switch f {
	case Empty:
		return expected + ", found nothing: the file is empty"
	case Unknown:
		return expected + ", found " + begin
	case Text:
		return expected + ", found text: " + begin
	case HTML:
		return expected + ", found a web page (HTML): download the image itself"
	case LFSPointer:
		return "the file is a Git LFS pointer, not the image: run git lfs pull"
	}
	switch kinds[f] {
	case RawKind:
		return fmt.Sprintf("%s images are not read: develop them to JPEG, PNG or TIFF", f)
	case DocumentKind:
		return fmt.Sprintf("%s documents are not read: export the pages as PNG", f)
	case ArchiveKind:
		return fmt.Sprintf("%s, found a %s archive (%q): unpack it", expected, f, data[:min(len(data), 4)])
	case VideoKind:
		return fmt.Sprintf("%s is not read: extract the frames as PNG or JPEG", f)
	case OtherKind:
		return fmt.Sprintf("%s, found %s", expected, f)
	}
	return fmt.Sprintf("%s images are not read: export JPEG or PNG", f)
}
