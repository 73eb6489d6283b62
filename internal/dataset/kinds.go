package dataset

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode/utf8"
)

// class is what the name of a file says about its content.
type class int

const (
	// otherFile is a file of a known kind without an image: text, code, a document, a
	// model. Such files are normal in a folder of images and are passed over silently.
	otherFile class = iota
	imageFile
	yamlFile
	// unclearFile is decided by the first bytes of the file.
	unclearFile
)

var (
	// imageExtensions are those of the formats that imagefile decodes.
	imageExtensions = strings.Fields(".png .apng .jpg .jpeg .jpe .jfif .jif .jfi .pjpeg .pjp .bmp .dib .tif .tiff .gif .webp")
	// otherExtensions are those of otherFile. Some of these formats are zips or begin like
	// an image.
	otherExtensions = strings.Fields(`.txt .md .rst .tex .log .json .jsonl .ndjson .geojson .csv .tsv .xml .xmp .html .htm .css .js .mjs .ts
		.py .ipynb .r .m .c .h .cpp .go .java .sh .bat .cmd .ps1 .ini .cfg .conf .toml .env .properties .lock .sql .db .sqlite
		.doc .docx .xls .xlsx .ods .ppt .pptx .odt .odp .rtf .pages .numbers .key .epub .lnk .url .webloc .aae .thm .sha1 .sha256 .md5
		.pt .pth .onnx .ckpt .safetensors .pkl .pickle .joblib .pb .tflite .names .cache .tfrecord .parquet .feather .arrow
		.exe .dll .so .dylib .jar .apk .whl .pyc .ttf .otf .woff .woff2 .mp3 .wav .flac .ogg .svg .ico .cur`)
	// rawExtensions are those of cameras' raw formats, most of which begin like a TIFF.
	rawExtensions = strings.Fields(".dng .nef .nrw .cr2 .cr3 .crw .arw .srf .sr2 .orf .rw2 .raf .pef .srw .raw .3fr .iiq .erf .mef .mos .mrw .kdc .dcr .x3f .rwl")
	// unreadExtensions name the image formats that are not read, for files whose content
	// is not recognized.
	unreadExtensions = map[string]string{
		".heic": "HEIC", ".heif": "HEIC", ".hif": "HEIC", ".heics": "HEIC", ".avif": "AVIF", ".avifs": "AVIF", ".jxl": "JPEG XL",
		".jp2": "JPEG 2000", ".j2k": "JPEG 2000", ".j2c": "JPEG 2000", ".jpc": "JPEG 2000", ".jpf": "JPEG 2000", ".jpx": "JPEG 2000", ".jpm": "JPEG 2000",
		".dcm": "DICOM", ".dicom": "DICOM", ".ima": "DICOM", ".psd": "Photoshop", ".psb": "Photoshop", ".exr": "OpenEXR", ".hdr": "Radiance HDR",
		".tga": "TGA", ".pcx": "PCX", ".ppm": "PNM", ".pgm": "PNM", ".pbm": "PNM", ".pnm": "PNM", ".pam": "PNM", ".pfm": "PNM",
		".qoi": "QOI", ".dds": "DDS", ".xcf": "GIMP", ".jxr": "JPEG XR", ".wdp": "JPEG XR", ".hdp": "JPEG XR", ".bpg": "BPG", ".jls": "JPEG-LS",
		".nii": "NIfTI", ".nrrd": "NRRD", ".mha": "MetaImage", ".mhd": "MetaImage", ".fits": "FITS", ".fit": "FITS", ".fts": "FITS",
		".npy": "NumPy", ".npz": "NumPy", ".mat": "MATLAB", ".svs": "slide", ".ndpi": "slide", ".scn": "slide", ".mrxs": "slide",
		".czi": "microscope (CZI)", ".lif": "microscope (LIF)", ".nd2": "microscope (ND2)", ".vsi": "microscope (VSI)",
	}
)

// classify returns the class of a file by its name.
func classify(name string) class {
	ext := strings.ToLower(path.Ext(name))
	switch {
	case slices.Contains(imageExtensions, ext):
		return imageFile
	case ext == ".yaml" || ext == ".yml":
		return yamlFile
	case slices.Contains(otherExtensions, ext), strings.HasSuffix(name, "~"):
		return otherFile
	}
	switch strings.ToLower(path.Base(name)) {
	case "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r":
		return otherFile
	}
	return unclearFile
}

// IsImage reports whether the name has the extension of an image that can be decoded.
func IsImage(name string) bool { return classify(name) == imageFile }

// headBytes is the number of bytes from a file's beginning that kindOf needs.
const headBytes = 512

// kind is what a file contains.
type kind struct {
	// image reports whether it is an image.
	image bool
	// refusal is why it is not read and what to do; empty for an image that is read, and
	// for a file that is not worth a word.
	refusal string
}

var noImage = kind{}

// signature is bytes at an offset of a file; '?' matches any byte.
type signature struct {
	at    int
	magic string
	kind  kind
}

func unread(format string) kind {
	return kind{true, format + " images are not read: export JPEG or PNG"}
}

func passedOver(what, remedy string) kind {
	return kind{false, "it is " + what + ", which is not read: " + remedy}
}

var (
	readable = kind{image: true}
	raw      = kind{true, "camera raw images are not read: export JPEG or PNG"}
	dicom    = kind{true, "DICOM images are not read: export PNG or TIFF"}
	archive  = passedOver("an archive", "unpack it, or give it alone")
	video    = passedOver("a video", "extract its frames as JPEG or PNG")
	document = passedOver("a document", "export its pages as PNG")

	signatures = []signature{
		{0, "\x89PNG\r\n\x1a\n", readable}, {0, "\xff\xd8\xff\xf7", unread("JPEG-LS")}, {0, "\xff\xd8\xff", readable},
		{0, "GIF87a", readable}, {0, "GIF89a", readable}, {0, "RIFF????WEBP", readable},
		{0, "\x00\x00\x00\x0cJXL \r\n\x87\n", unread("JPEG XL")}, {0, "\xff\x0a", unread("JPEG XL")},
		{0, "\x00\x00\x00\x0cjP  \r\n\x87\n", unread("JPEG 2000")}, {0, "\xff\x4f\xff\x51", unread("JPEG 2000")},
		{128, "DICM", dicom}, {0, "8BPS", unread("Photoshop")}, {0, "\x76\x2f\x31\x01", unread("OpenEXR")},
		{0, "#?RADIANCE", unread("Radiance HDR")}, {0, "#?RGBE", unread("Radiance HDR")}, {0, "qoif", unread("QOI")},
		{0, "gimp xcf", unread("GIMP")}, {0, "DDS ", unread("DDS")}, {0, "II\xbc", unread("JPEG XR")}, {0, "BPG\xfb", unread("BPG")},
		{0, "SIMPLE  =", unread("FITS")}, {0, "\x93NUMPY", unread("NumPy")}, {0, "NRRD000", unread("NRRD")}, {344, "n+1\x00", unread("NIfTI")},
		{0, "FUJIFILMCCD-RAW", raw}, {0, "IIRO", raw}, {0, "IIRS", raw}, {0, "MMOR", raw}, {0, "IIU\x00", raw}, {0, "FOVb", raw},
		{0, "PK\x03\x04", archive}, {0, "PK\x05\x06", archive}, {0, "7z\xbc\xaf\x27\x1c", archive}, {0, "Rar!\x1a\x07", archive},
		{0, "\x1f\x8b", archive}, {0, "BZh", archive}, {0, "\xfd7zXZ\x00", archive}, {0, "\x28\xb5\x2f\xfd", archive}, {257, "ustar", archive},
		{0, "\x1a\x45\xdf\xa3", video}, {0, "RIFF????AVI ", video}, {0, "\x00\x00\x01\xba", video}, {0, "\x00\x00\x01\xb3", video},
		{0, "%PDF-", document}, {0, "%!PS", document}, {0, "AT&TFORM", document},
	}
	// brands are the kinds of files in boxes (ISO base media), by their brands.
	brands = map[string]kind{
		"heic": unread("HEIC"), "heix": unread("HEIC"), "heim": unread("HEIC"), "heis": unread("HEIC"), "hevc": unread("HEIC"), "hevx": unread("HEIC"),
		"avif": unread("AVIF"), "avis": unread("AVIF"), "crx ": raw, "jxl ": unread("JPEG XL"), "jp2 ": unread("JPEG 2000"), "jpx ": unread("JPEG 2000"),
	}
)

// kindOf returns the kind of a file by its first headBytes bytes, or by its name where
// these do not decide.
func kindOf(name string, head []byte) kind {
	ext := strings.ToLower(path.Ext(name))
	for _, s := range signatures {
		if len(head) >= s.at && matches(head[s.at:], s.magic) {
			if s.kind.refusal == archive.refusal && unreadExtensions[ext] != "" { // .npz, .nii.gz
				return unread(unreadExtensions[ext])
			}
			return s.kind
		}
	}
	switch {
	case slices.Contains(rawExtensions, ext):
		return raw
	case unreadExtensions[ext] == "DICOM":
		return dicom
	case unreadExtensions[ext] != "":
		return unread(unreadExtensions[ext])
	case matches(head, "II*\x00"), matches(head, "MM\x00*"), matches(head, "II+\x00"), matches(head, "MM\x00+"), isBMP(head):
		return readable
	case len(head) >= 12 && string(head[4:8]) == "ftyp":
		return brandOf(head)
	case isPNM(head):
		return unread("PNM")
	case isText(head):
		return noImage
	}
	return passedOver("of an unknown kind", "if it is an image, export JPEG or PNG")
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

// brandOf returns the kind of a file in boxes.
func brandOf(head []byte) kind {
	end := min(int(binary.BigEndian.Uint32(head)), len(head))
	generic := false
	for p := 8; p+4 <= end; p += 4 {
		brand := string(head[p : p+4])
		if k, ok := brands[brand]; ok {
			return k
		}
		generic = generic || slices.Contains([]string{"mif1", "mif2", "msf1"}, brand)
	}
	if generic {
		return unread("HEIC")
	}
	return video
}

// isBMP reports whether the bytes begin like a BMP: with one of the sizes of its header.
func isBMP(head []byte) bool {
	return len(head) >= 18 && string(head[:2]) == "BM" &&
		slices.Contains([]uint32{12, 16, 40, 52, 56, 64, 108, 124}, binary.LittleEndian.Uint32(head[14:]))
}

// isPNM reports whether the bytes begin like a portable anymap.
func isPNM(head []byte) bool {
	return len(head) >= 3 && head[0] == 'P' && bytes.IndexByte([]byte("1234567Ff"), head[1]) >= 0 && bytes.IndexByte([]byte("\n\r\t "), head[2]) >= 0
}

// isText reports whether the bytes are the beginning of a text; none are, too.
func isText(head []byte) bool {
	if bytes.HasPrefix(head, []byte("\xff\xfe")) || bytes.HasPrefix(head, []byte("\xfe\xff")) { // UTF-16
		return true
	}
	if bytes.ContainsAny(head, "\x00\x01\x02\x03\x04\x05\x06\x07\x0e\x0f") {
		return false
	}
	wrong := 0
	for rest := head; len(rest) > 0; {
		r, n := utf8.DecodeRune(rest)
		if r == utf8.RuneError && n == 1 {
			wrong++
		}
		rest = rest[n:]
	}
	return wrong <= len(head)/2 // a text in another encoding has fewer bytes above 127
}

// PassedOver returns one sentence for each reason for which files are not read.
func PassedOver(files []File) []string {
	var p passedOverFiles
	for _, f := range files {
		if f.Reason != "" {
			p.add(f.Path, f.Reason)
		}
	}
	return grouped(p, 1)
}

// grouped returns a sentence for each reason for which at least least files were passed
// over.
func grouped(files passedOverFiles, least int) []string {
	var order []string
	count, first := map[string]int{}, map[string]string{}
	for i, r := range files.reasons {
		if count[r] == 0 {
			order = append(order, r)
			first[r] = shortened(files.names[i])
		}
		count[r]++
	}
	var sentences []string
	for _, r := range order {
		if count[r] < least {
			continue
		}
		more := ""
		if n := count[r] - 1; n > 0 {
			more = fmt.Sprintf(" and %d more", n)
		}
		sentences = append(sentences, fmt.Sprintf("passed over %s%s: %s", first[r], more, r))
	}
	return sentences
}
