package api

import (
	"bytes"
	"io"
	"mime"
	"mime/multipart"
	"os"
	"strings"
	"testing"
)

// FuzzForm reads forms of any bytes: what is kept stays within its limits, an
// error is a client's, and no file stays behind.
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
	fields := map[string]field{"zipFile": {limit: 64, spool: true}, "modelFile": {limit: 64}, "level": {limit: 8}, "image_size": {limit: 8},
		"imageFile": {limit: 64, many: 96}, "hashed": {limit: 64, hash: true}}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, kind string, body []byte) {
		_, params, err := mime.ParseMediaType(kind)
		if err != nil || params["boundary"] == "" {
			return
		}
		room := &budget{}
		room.left.Store(1 << 20)
		form := newForm(int64(len(body)), &share{of: room})
		err = form.read(multipart.NewReader(bytes.NewReader(body), params["boundary"]), fields, dir)
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
