package bulk

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/deepmed/anomaly/internal/dataset"
	"github.com/deepmed/anomaly/internal/imagefile"
)

// pieces returns the images of all pieces of a zip, and checks the bounds of each.
func piecesOf(t testing.TB, l *dataset.ImageList, lim imagefile.Limits, line int) (all []image, pieces int) {
	t.Helper()
	from := 0
	for _, to := range plan(l, lim, line) {
		piece := encode(l, from, to, lim)
		images, err := decode(piece)
		if err != nil {
			t.Fatal(err)
		}
		content := 0
		for _, m := range images {
			content += len(m.data)
		}
		if len(images) != to-from || len(images) > pieceImages || content > pieceBytes && len(images) > 1 {
			t.Errorf("a piece of %d images with %d bytes for the images %d to %d", len(images), content, from, to)
		}
		all, from, pieces = append(all, images...), to, pieces+1
	}
	return all, pieces
}

func TestEncode_HasAllImagesInTheOrderOfTheZip(t *testing.T) {
	var entries []entryOf
	for i := range 300 {
		entries = append(entries, entryOf{fmt.Sprintf("%d.png", i*7%300), bytes.Repeat([]byte{byte(i)}, i*100)})
	}
	entries = append(entries, entryOf{"large.png", bytes.Repeat([]byte("x"), 3<<20)}, entryOf{"empty.png", nil}, entryOf{"notes.txt", []byte("no image")},
		entryOf{strings.Repeat("n", 60_000) + ".png", []byte("y")}, entryOf{"__MACOSX/a.png", []byte("z")})
	images, _ := piecesOf(t, list(t, zipOf(t, entries...)), imagefile.DefaultLimits(), 1)
	want := slices.DeleteFunc(entries, func(e entryOf) bool { return e.name == "notes.txt" || strings.HasPrefix(e.name, "__") })
	if len(images) != len(want) {
		t.Fatalf("%d images, want %d", len(images), len(want))
	}
	for i, m := range images {
		if m.name != want[i].name || m.reason != "" || !bytes.Equal(m.data, want[i].data) {
			t.Errorf("image %d: %.40q, %q, %d bytes", i, m.name, m.reason, len(m.data))
		}
	}
}

func TestEncode_NamesWhyAnImageCannotBeRead(t *testing.T) {
	lim := imagefile.Limits{MaxBytes: 1000}
	damaged := zipOf(t, entryOf{"good.png", []byte("good")}, entryOf{"damaged.png", []byte("damaged content")}, entryOf{"large.png", make([]byte, 1001)},
		entryOf{"photo.heic", []byte("\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic")})
	at := bytes.Index(damaged, []byte("damaged content"))
	damaged[at] ^= 1
	images, _ := piecesOf(t, list(t, damaged), lim, 1)
	_, large := imagefile.Decode(make([]byte, 1001), imagefile.Options{Limits: lim})
	for i, want := range []string{"", zip.ErrChecksum.Error(), large.Error(), "HEIC images are not read: export JPEG or PNG"} {
		if images[i].reason != want || (want == "") != (len(images[i].data) > 0) {
			t.Errorf("%s: reason %q with %d bytes, want %q", images[i].name, images[i].reason, len(images[i].data), want)
		}
	}
}

func TestPlan_MakesSmallerPiecesOfLongerLines(t *testing.T) {
	_, zipped := someImages(t, 100)
	l := list(t, zipped)
	for _, c := range []struct{ line, most int }{{1, pieceImages}, {resultBytes / 10, 10}, {10 * resultBytes, 1}} {
		from := 0
		for _, to := range plan(l, imagefile.DefaultLimits(), c.line) {
			if to-from > c.most {
				t.Errorf("lines of %d bytes: a piece of %d images, want at most %d", c.line, to-from, c.most)
			}
			from = to
		}
	}
}

func TestCheckResults_RefusesLinesThatMultiplyTheModel(t *testing.T) {
	_, zipped := someImages(t, 100)
	l := list(t, zipped)
	if err := CheckResults(l, LineBytes([]string{"normal", "anomaly"})); err != nil {
		t.Error(err)
	}
	if err := CheckResults(l, LineBytes(slices.Repeat([]string{"a long name of a class"}, 30_000))); !errors.Is(err, dataset.ErrTooLarge) {
		t.Errorf("error %v", err)
	}
}

func TestOpenImages_RefusesHostileZipsWithTheSentencesOfTrainings(t *testing.T) {
	bomb := func() []byte {
		var b bytes.Buffer
		z := zip.NewWriter(&b)
		for i := range 40 {
			w, err := z.Create(fmt.Sprintf("%d.bmp", i))
			if err == nil {
				_, err = w.Write(make([]byte, 8<<20))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	lim := dataset.DefaultLimits()
	lim.Entries = 50
	_, many := someImages(t, 51)
	_, good := someImages(t, 3)
	for name, data := range map[string][]byte{
		"no zip": []byte("not a zip"), "an empty file": nil, "a zip that was cut off": good[:len(good)/2], "a bomb": bomb(), "too many files": many,
		"no images": zipOf(t, entryOf{"a.txt", nil}), "only a video": zipOf(t, entryOf{"a.mp4", []byte("\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom")}),
	} {
		r := bytes.NewReader(data)
		source, want := dataset.OpenZip(r, r.Size(), lim)
		if want == nil {
			want = source.Check()
		}
		if _, got := dataset.OpenImages(r, r.Size(), lim); got == nil || got.Error() != want.Error() {
			t.Errorf("%s: error %v, want %v", name, got, want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	_, zipped := someImages(f, 3)
	l := list(f, zipped)
	piece := encode(l, 0, l.Len(), imagefile.DefaultLimits())
	f.Add(piece)
	f.Add(piece[:len(piece)/2])
	f.Add(binary.AppendUvarint([]byte{pieceVersion}, 1<<63))
	f.Add([]byte{pieceVersion, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01})
	f.Fuzz(func(t *testing.T, data []byte) {
		images, err := decode(data)
		if err != nil {
			if !errors.Is(err, errPiece) {
				t.Error(err)
			}
			return
		}
		n := 0
		for _, m := range images {
			n += len(m.name) + len(m.reason) + len(m.data)
		}
		if n > len(data) {
			t.Errorf("%d bytes of a piece of %d", n, len(data))
		}
	})
}
