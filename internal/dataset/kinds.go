package dataset

import (
	"bytes"
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/deepmed/anomaly/internal/imagefile"
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
	imageExtensions = strings.Fields(".png .apng .jpg .jpeg .jpe .jfif .jif .jfi .pjpeg .pjp .bmp .dib .tif .tiff .gif .webp .dcm .dicom")
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
		".psd": "Photoshop", ".psb": "Photoshop", ".exr": "OpenEXR", ".hdr": "Radiance HDR",
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
	case "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "dicomdir":
		return otherFile
	}
	return unclearFile
}

// IsImage reports whether the name has the extension of an image that can be decoded.
func IsImage(name string) bool { return classify(name) == imageFile }

// kind is what a file contains.
type kind struct {
	// image reports whether it is an image.
	image bool
	// refusal is why it is not read and what to do; empty for an image that is read, and
	// for a file that is not worth a word.
	refusal string
}

var noImage = kind{}

func unread(format string) kind {
	return kind{true, format + " images are not read: export JPEG or PNG"}
}

func passedOver(what, remedy string) kind {
	return kind{false, "it is " + what + ", which is not read: " + remedy}
}

var (
	readable = kind{image: true}
	archive  = passedOver("an archive", "unpack it, or give it alone")
	video    = passedOver("a video", "extract its frames as JPEG or PNG")
	document = passedOver("a document", "export its pages as PNG")
	unknown  = passedOver("of an unknown kind", "if it is an image, export JPEG or PNG")
)

// kindOf returns the kind of a file by its first imagefile.SniffBytes bytes, or by its
// name where these do not decide.
func kindOf(name string, head []byte) kind {
	ext := strings.ToLower(path.Ext(name))
	f, ok := imagefile.Sniff(head)
	named := unreadExtensions[ext]
	switch raw := slices.Contains(rawExtensions, ext); {
	case ok && !(raw && f == imagefile.TIFF):
		return readable
	case raw:
		return unread("camera raw")
	case named != "" && (f.Kind() == imagefile.ArchiveKind || f.Kind() == imagefile.OtherKind || f == imagefile.TGA): // .npz, .nii.gz
		return unread(named)
	case f == imagefile.TGA: // it has no signature
		return unknown
	}
	switch f.Kind() {
	case imagefile.ImageKind, imagefile.RawKind:
		if f == imagefile.SVG || f == imagefile.LFSPointer {
			return noImage
		}
		return kind{true, f.Remedy()}
	case imagefile.ArchiveKind:
		return archive
	case imagefile.VideoKind:
		return video
	case imagefile.DocumentKind:
		return document
	}
	if f == imagefile.Unknown && !isText(head) {
		return unknown
	}
	return noImage
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
