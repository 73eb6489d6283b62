package api

import (
	"bufio"
	"bytes"
	"io"
	"maps"
	"mime"
	"mime/multipart"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/ort/orttest"
	"github.com/deepmed/anomaly/models"
)

// knownModel is a file that a recognizer of rememberingKnown knows.
var knownModel = bytes.Repeat([]byte("known\r\n"), 8)

// rememberingKnown gives recognizers of knownModel, and of a file that it is the beginning of.
func rememberingKnown(t testing.TB) func() *inference.UploadMatcher {
	t.Helper()
	m, err := models.Read(trained(t)["autoencoder.pt"], models.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	c := inference.NewCache(1 << 30)
	t.Cleanup(c.Close)
	for key, data := range map[string][]byte{models.Identity(knownModel): knownModel, "longer": append(bytes.Clone(knownModel), "longer"...)} {
		d, release, err := c.Get(t.Context(), key, func() (*inference.Detector, error) { return inference.NewDetector(orttest.Open(t), m, 1) })
		if err != nil {
			t.Fatal(err)
		}
		d.Remember(data)
		release()
	}
	return c.UploadMatcher
}

// readWhole reads a form as a request's body is read.
func readWhole(body io.Reader, length int, boundary string, fields map[string]field, dir string) (*form, error) {
	room := &budget{}
	room.left.Store(1 << 20)
	f := newForm(int64(length), &share{of: room})
	rest := f.recognizeFirst(bufio.NewReader(&steady{Reader: body}), boundary, fields)
	return f, f.read(multipart.NewReader(rest, boundary), fields, dir)
}

func TestAFormSaysTheSameWhetherItsModelIsKnownOrNot(t *testing.T) {
	known := rememberingKnown(t)
	header := "--b\r\nContent-Disposition: form-data; name=\"modelFile\"; filename=\"m\"\r\n\r\n"
	image := "\r\n--b\r\nContent-Disposition: form-data; name=\"imageFile\"\r\n\r\ni\r\n--b--"
	model := string(knownModel)
	for name, c := range map[string]struct {
		body  string
		first bool // the model is taken where the form begins
	}{
		"the model first":                  {header + model + image, true},
		"nothing but the model":            {header + model + "\r\n--b--\r\n", true},
		"without a last line's end":        {header + model + "\r\n--b--", true},
		"the image first":                  {strings.TrimSuffix(image, "--")[2:] + strings.TrimPrefix(header, "--b") + model + "\r\n--b--", false},
		"a longer file":                    {header + model + "longer" + image, true},
		"a file that goes on":              {header + model + "long" + image, false},
		"a shorter file":                   {header + model[:30] + image, false},
		"another file":                     {header + "known\r\nknown\r\nun" + image, false},
		"an empty file":                    {header + image, false},
		"the boundary's beginning":         {header + model + "\r\n--bb" + image, false},
		"more behind the last boundary":    {header + model + "\r\n--b--more", false},
		"spaces behind the boundary":       {header + model + "\r\n--b \t" + image[5:], false},
		"a body that ends in the model":    {header + model[:20], false},
		"a body that ends in the boundary": {header + model + "\r\n--", false},
		"lines without returns":            {strings.ReplaceAll(header, "\r", "") + model + strings.ReplaceAll(image, "\r", ""), false},
		"another field":                    {strings.Replace(header, "model", "other", 1) + model + image, false},
		"no name":                          {"--b\r\n\r\n" + model + image, false},
		"no colon":                         {"--b\r\nname\r\n\r\n" + model + image, false},
		"a header that is long":            {strings.Replace(header, "; file", strings.Repeat(" ", 2000)+"; file", 1) + model + image, false},
		"something before":                 {"preamble\r\n" + header + model + image, false},
		"the model twice":                  {header + model + "\r\n" + header + "other" + image, true},
	} {
		t.Run(name, func(t *testing.T) {
			for _, chunk := range []func(io.Reader) io.Reader{iotest.OneByteReader, iotest.HalfReader, iotest.DataErrReader} {
				fields := func(known func() *inference.UploadMatcher) map[string]field {
					return map[string]field{"modelFile": {limit: 1 << 10, hash: true, known: known}, "imageFile": {limit: 8, many: 8}}
				}
				want, wantErr := readWhole(chunk(strings.NewReader(c.body)), len(c.body), "b", fields(nil), t.TempDir())
				got, gotErr := readWhole(chunk(strings.NewReader(c.body)), len(c.body), "b", fields(known), t.TempDir())
				if (gotErr == nil) != (wantErr == nil) {
					t.Fatalf("known: %v, unknown: %v", gotErr, wantErr)
				}
				if gotErr == nil && !sameForm(got, want) {
					t.Errorf("known: %q, unknown: %q", got.memory, want.memory)
				}
				first := newForm(0, nil)
				first.recognizeFirst(bufio.NewReader(chunk(strings.NewReader(c.body))), "b", fields(known))
				if taken := first.memory["modelFile"] != nil; taken != c.first {
					t.Errorf("taken where the form begins: %v", taken)
				}
			}
		})
	}
}

// sameForm says whether two forms hold the same.
func sameForm(a, b *form) bool {
	longer := models.Identity(append(bytes.Clone(knownModel), "longer"...))
	sum := func(f *form, name string) string { // the longer file's is no real one
		return strings.Replace(f.sums[name], "longer", longer, 1)
	}
	for name := range a.memory {
		if sum(a, name) != sum(b, name) {
			return false
		}
	}
	return maps.EqualFunc(a.memory, b.memory, bytes.Equal) && len(a.files) == len(b.files) &&
		maps.EqualFunc(a.lists, b.lists, func(x, y []upload) bool {
			return slices.EqualFunc(x, y, func(x, y upload) bool { return x.file == y.file && bytes.Equal(x.data, y.data) })
		})
}

// FuzzForm reads forms of any bytes: what is kept stays within its limits, an
// error is a client's, no file stays behind, and whether a file is known changes nothing.
func FuzzForm(f *testing.F) {
	whole, kind := encode(f, file("zipFile", "a.zip", []byte("PK")), text("level", "3"), text("image_size", ""), file("modelFile", "m", bytes.Repeat([]byte("m"), 100)))
	several, severalKind := encode(f, file("imageFile", "i", []byte("i")), file("imageFile", "j", bytes.Repeat([]byte("j"), 60)), file("imageFile", "", bytes.Repeat([]byte("k"), 60)), text("hashed", "h"))
	f.Add(severalKind, several.Bytes())
	f.Add(kind, whole.Bytes())
	f.Add(kind, whole.Bytes()[:whole.Len()/2])
	f.Add("multipart/form-data; boundary=b", []byte("--b\r\nContent-Disposition: form-data; name=\"level\"\r\n\r\n1\r\n--b--\r\n"))
	f.Add("multipart/form-data; boundary=b", []byte("--b\nContent-Disposition: form-data; name=level\n\n1\n--b--"))
	f.Add("multipart/form-data; boundary=b", []byte(strings.Repeat("--b\r\n\r\n\r\n", 200)))
	f.Add("multipart/form-data; boundary=b", []byte("--b\r\nContent-Disposition: form-data; name=\"zipFile\"\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n=41\r\n--b--\r\n"))
	f.Add("multipart/mixed; boundary=\"b b\"", []byte("--b b\r\n"+strings.Repeat("X: y\r\n", 300)+"\r\n"))
	knownForm, knownKind := encode(f, file("hashed", "m", knownModel), file("imageFile", "i", []byte("i")))
	f.Add(knownKind, knownForm.Bytes())
	f.Add("multipart/form-data; boundary=b", []byte("--b\r\nContent-Disposition: form-data; name=hashed\r\n\r\n"+string(knownModel)+"\r\n--b--"))
	fields := map[string]field{"zipFile": {limit: 64, spool: true}, "modelFile": {limit: 64}, "level": {limit: 8}, "image_size": {limit: 8},
		"imageFile": {limit: 64, many: 96}, "hashed": {limit: 64, hash: true}}
	knowing := maps.Clone(fields)
	knowing["hashed"] = field{limit: 64, hash: true, known: rememberingKnown(f)}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, kind string, body []byte) {
		_, params, err := mime.ParseMediaType(kind)
		if err != nil || params["boundary"] == "" {
			return
		}
		form, err := readWhole(bytes.NewReader(body), len(body), params["boundary"], fields, dir)
		again, againErr := readWhole(bytes.NewReader(body), len(body), params["boundary"], knowing, dir)
		if (err == nil) != (againErr == nil) || (err == nil && !sameForm(form, again)) {
			t.Errorf("%v and %q, but where a file is known %v and %q", err, form.memory, againErr, again.memory)
		}
		again.Close()
		if err != nil {
			told, ok := formError(err).(*problem)
			if !ok || told.status < 400 || told.status >= 500 {
				t.Errorf("%v is no client's", err)
			}
		} else {
			for name, data := range form.memory {
				if fields[name].limit == 0 || int64(len(data)) > fields[name].limit {
					t.Errorf("%q keeps %d bytes", name, len(data))
				}
			}
			for name, list := range form.lists {
				total := int64(0)
				for _, u := range list {
					total += int64(len(u.data))
					if int64(len(u.data)) > fields[name].limit {
						t.Errorf("%q keeps %d bytes", name, len(u.data))
					}
				}
				if total > fields[name].many {
					t.Errorf("%q keeps %d bytes in all", name, total)
				}
			}
			for name, file := range form.files {
				n, err := io.Copy(io.Discard, io.NewSectionReader(file, 0, 1<<30))
				if !fields[name].spool || n > fields[name].limit || err != nil {
					t.Errorf("%q keeps %d bytes, %v", name, n, err)
				}
			}
		}
		form.Close()
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("left are %v, %v", left, err)
		}
	})
}
