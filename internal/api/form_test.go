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

// knownModel is a file that the matchers of knownUploads know.
var knownModel = bytes.Repeat([]byte("known\r\n"), 8)

// knownUploads returns matchers of knownModel, and of a longer file that begins with it.
func knownUploads(t testing.TB) func() *inference.UploadMatcher {
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

// readAll reads a form as readForm does.
func readAll(body io.Reader, length int, boundary string, fields map[string]field, dir string) (*form, error) {
	budget := &memoryBudget{}
	budget.reset(1 << 20)
	f := newForm(int64(length), &reservation{budget: budget})
	rest := f.matchFirstPart(bufio.NewReader(&stickyErrorReader{Reader: body}), boundary, fields)
	return f, f.read(multipart.NewReader(rest, boundary), fields, dir)
}

func TestForm_IsTheSameWithAndWithoutAKnownModel(t *testing.T) {
	known := knownUploads(t)
	header := "--b\r\nContent-Disposition: form-data; name=\"modelFile\"; filename=\"m\"\r\n\r\n"
	image := "\r\n--b\r\nContent-Disposition: form-data; name=\"imageFile\"\r\n\r\ni\r\n--b--"
	model := string(knownModel)
	for name, c := range map[string]struct {
		body  string
		first bool // matchFirstPart matches the model
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
					return map[string]field{"modelFile": {maxBytes: 1 << 10, hash: true, known: known}, "imageFile": {maxBytes: 8, maxTotal: 8}}
				}
				want, wantErr := readAll(chunk(strings.NewReader(c.body)), len(c.body), "b", fields(nil), t.TempDir())
				got, gotErr := readAll(chunk(strings.NewReader(c.body)), len(c.body), "b", fields(known), t.TempDir())
				if (gotErr == nil) != (wantErr == nil) {
					t.Fatalf("known: %v, unknown: %v", gotErr, wantErr)
				}
				if gotErr == nil && !sameForm(got, want) {
					t.Errorf("known: %q, unknown: %q", got.memory, want.memory)
				}
				first := newForm(0, nil)
				first.matchFirstPart(bufio.NewReader(chunk(strings.NewReader(c.body))), "b", fields(known))
				if matched := first.memory["modelFile"] != nil; matched != c.first {
					t.Errorf("matchFirstPart matched the model: %t", matched)
				}
			}
		})
	}
}

// sameForm reports whether two forms have the same parts.
func sameForm(a, b *form) bool {
	longer := models.Identity(append(bytes.Clone(knownModel), "longer"...))
	sum := func(f *form, name string) string { // the longer file has the fake hash "longer"
		return strings.Replace(f.hashes[name], "longer", longer, 1)
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

// FuzzForm reads arbitrary bytes as forms. The parts must be within their limits, every
// error must be a client error, no file may be left, and a form must be read the same
// with and without known files.
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
	f.Add("multipart/form-data; boundary=b", []byte("--b\r\nContent-Disposition: form-data; name=zipFile; filename=\"\"\r\n\r\n\r\n--b\r\nContent-Disposition: form-data; name=zipFile\r\n\r\nPK\r\n--b--"))
	knownForm, knownKind := encode(f, file("hashed", "m", knownModel), file("imageFile", "i", []byte("i")))
	f.Add(knownKind, knownForm.Bytes())
	f.Add("multipart/form-data; boundary=b", []byte("--b\r\nContent-Disposition: form-data; name=hashed\r\n\r\n"+string(knownModel)+"\r\n--b--"))
	fields := map[string]field{"zipFile": {maxBytes: 64, spool: true}, "modelFile": {maxBytes: 64}, "level": {maxBytes: 8}, "image_size": {maxBytes: 8},
		"imageFile": {maxBytes: 64, maxTotal: 96}, "hashed": {maxBytes: 64, hash: true}}
	withKnown := maps.Clone(fields)
	withKnown["hashed"] = field{maxBytes: 64, hash: true, known: knownUploads(f)}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, kind string, body []byte) {
		_, params, err := mime.ParseMediaType(kind)
		if err != nil || params["boundary"] == "" {
			return
		}
		form, err := readAll(bytes.NewReader(body), len(body), params["boundary"], fields, dir)
		again, againErr := readAll(bytes.NewReader(body), len(body), params["boundary"], withKnown, dir)
		if (err == nil) != (againErr == nil) || (err == nil && !sameForm(form, again)) {
			t.Errorf("without known files: %v and %q, with known files: %v and %q", err, form.memory, againErr, again.memory)
		}
		again.Close()
		if err != nil {
			p, ok := formError(err).(*problem)
			if !ok || p.status < 400 || p.status >= 500 {
				t.Errorf("%v is not a client error", err)
			}
		} else {
			for name, data := range form.memory {
				if fields[name].maxBytes == 0 || int64(len(data)) > fields[name].maxBytes {
					t.Errorf("%q has %d bytes", name, len(data))
				}
			}
			for name, list := range form.lists {
				total := int64(0)
				for _, u := range list {
					total += int64(len(u.data))
					if int64(len(u.data)) > fields[name].maxBytes {
						t.Errorf("%q has %d bytes", name, len(u.data))
					}
				}
				if total > fields[name].maxTotal {
					t.Errorf("all of %q has %d bytes", name, total)
				}
			}
			for name, file := range form.files {
				n, err := io.Copy(io.Discard, io.NewSectionReader(file, 0, 1<<30))
				if !fields[name].spool || n > fields[name].maxBytes || err != nil {
					t.Errorf("%q has %d bytes, %v", name, n, err)
				}
			}
		}
		form.Close()
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("files left: %v, %v", left, err)
		}
	})
}
