package main

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"io"
	"io/fs"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// planted are values of attributes that must not leave a DICOM file.
var planted = []string{"PLANTEDNAME", "PLANTEDID", "PLANTEDCLINIC", "PLANTEDBIRTH", "PLANTEDPRIVATE", "PLANTEDNESTED", "PLANTEDPREAMBLE"}

// dicomElement returns an element in explicit little endian.
func dicomElement(group, number uint16, vr, value string) string {
	if len(value)%2 != 0 {
		value += " "
	}
	b := binary.LittleEndian.AppendUint16(nil, group)
	b = append(binary.LittleEndian.AppendUint16(b, number), vr...)
	if vr == "OB" || vr == "SQ" || vr == "UN" {
		b = binary.LittleEndian.AppendUint32(append(b, 0, 0), uint32(len(value)))
	} else {
		b = binary.LittleEndian.AppendUint16(b, uint16(len(value)))
	}
	return string(b) + value
}

// dicomOf returns a grey image as a DICOM file with attributes of a patient; extra are
// elements before the pixels.
func dicomOf(m *image.Gray, extra string) []byte {
	us := func(v int) string { return string(binary.LittleEndian.AppendUint16(nil, uint16(v))) }
	var pixels bytes.Buffer
	b := m.Bounds()
	for y := range b.Dy() {
		pixels.Write(m.Pix[y*m.Stride : y*m.Stride+b.Dx()])
	}
	nested := dicomElement(0x0010, 0x0010, "PN", "PLANTEDNESTED")
	item := "\xfe\xff\x00\xe0" + string(binary.LittleEndian.AppendUint32(nil, uint32(len(nested)))) + nested
	preamble := "PLANTEDPREAMBLE"
	return []byte(preamble + strings.Repeat("\x00", 128-len(preamble)) + "DICM" +
		dicomElement(2, 0x10, "UI", "1.2.840.10008.1.2.1\x00") +
		dicomElement(0x0008, 0x0080, "LO", "PLANTEDCLINIC") +
		dicomElement(0x0008, 0x1140, "SQ", item) +
		dicomElement(0x0009, 0x0010, "LO", "PLANTEDPRIVATE") +
		dicomElement(0x0010, 0x0010, "PN", "PLANTEDNAME^ANY") +
		dicomElement(0x0010, 0x0020, "LO", "PLANTEDID") +
		dicomElement(0x0010, 0x0030, "DA", "PLANTEDBIRTH") +
		dicomElement(0x0028, 0x0002, "US", us(1)) +
		dicomElement(0x0028, 0x0004, "CS", "MONOCHROME2") +
		dicomElement(0x0028, 0x0010, "US", us(b.Dy())) +
		dicomElement(0x0028, 0x0011, "US", us(b.Dx())) +
		dicomElement(0x0028, 0x0100, "US", us(8)) +
		dicomElement(0x0028, 0x0101, "US", us(8)) +
		dicomElement(0x0028, 0x0102, "US", us(7)) +
		dicomElement(0x0028, 0x0103, "US", us(0)) + extra +
		dicomElement(0x7fe0, 0x0010, "OB", pixels.String()))
}

// dicomSequence returns a sequence of items.
func dicomSequence(group, number uint16, items ...string) string {
	var b strings.Builder
	for _, item := range items {
		b.WriteString("\xfe\xff\x00\xe0" + string(binary.LittleEndian.AppendUint32(nil, uint32(len(item)))) + item)
	}
	return dicomElement(group, number, "SQ", b.String())
}

// plantedGroups returns a file of two frames, whose functional groups and look-up table have
// attributes of a patient beside a window with that center.
func plantedGroups(t testing.TB, center string) []byte {
	t.Helper()
	entries := strings.Repeat("\x00\x80", 256)
	table := dicomSequence(0x0028, 0x3010, dicomElement(0x0028, 0x3002, "US", "\x00\x01\x00\x00\x10\x00")+
		dicomElement(0x0028, 0x3003, "LO", "PLANTEDPRIVATE")+dicomElement(0x0028, 0x3006, "US", entries))
	window := dicomElement(0x0028, 0x1050, "DS", center) + dicomElement(0x0028, 0x1051, "DS", "256") + dicomElement(0x0028, 0x1055, "LO", "PLANTEDNESTED")
	group := dicomSequence(0x0020, 0x9111, dicomElement(0x0010, 0x0010, "PN", "PLANTEDNAME")) + dicomSequence(0x0028, 0x9132, window)
	tile := squareTile(t, tileFiles(t, "test/good", 1)[0])
	pixels := "\xe0\x7f\x10\x00OB"
	extra := table + dicomSequence(0x5200, 0x9229, dicomElement(0x0010, 0x0020, "LO", "PLANTEDID")) + dicomSequence(0x5200, 0x9230, group, group)
	return bytes.Replace(dicomFrames(tile, tile), []byte(pixels), []byte(extra+pixels), 1)
}

// greyTile returns the pixels of a tile.
func greyTile(t testing.TB, path string) *image.Gray {
	t.Helper()
	tile, _, err := image.Decode(bytes.NewReader(read(t, path)))
	if err != nil {
		t.Fatal(err)
	}
	grey := image.NewGray(image.Rect(0, 0, tile.Bounds().Dx(), tile.Bounds().Dy()))
	draw.Draw(grey, grey.Bounds(), tile, tile.Bounds().Min, draw.Src)
	return grey
}

// dicomData writes a data set in the layout of an evaluation.
func dicomData(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	add := func(folder, from string, n int) {
		if err := os.MkdirAll(filepath.Join(dir, folder), 0o755); err != nil {
			t.Fatal(err)
		}
		for i, f := range tileFiles(t, from, n) {
			name := string(rune('a'+i)) + ".dcm"
			write(t, filepath.Join(dir, folder), name, dicomOf(greyTile(t, f), ""))
		}
	}
	add("train/good", "train/good", 20)
	add("test/good", "test/good", 6)
	add("test/crack", "test/crack", 6)
	return dir
}

// leaks returns the planted values in a text.
func leaks(text string) []string {
	var found []string
	upper := strings.ToUpper(text)
	for _, p := range planted {
		if strings.Contains(upper, p) {
			found = append(found, p)
		}
	}
	return found
}

// leaksNothing checks the files in a folder, those in zips, and their names.
func leaksNothing(t *testing.T, dir string) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files++
		data := read(t, path)
		texts := map[string]string{path: string(data)}
		if z, err := zip.NewReader(bytes.NewReader(data), int64(len(data))); err == nil {
			for _, f := range z.File {
				r, err := f.Open()
				if err != nil {
					return err
				}
				content, err := io.ReadAll(r)
				if err != nil {
					return err
				}
				texts[path+"/"+f.Name] = string(content)
			}
		}
		for name, text := range texts {
			if found := leaks(text); found != nil {
				t.Errorf("%s has %v", name, found)
			}
		}
		return nil
	})
	if err != nil || files == 0 {
		t.Errorf("%d files in %s, %v", files, dir, err)
	}
}

func TestDICOM_LeavesNothingOfThePatientInAnyOutput(t *testing.T) {
	data, out := dicomData(t), t.TempDir()
	if leaks(string(read(t, filepath.Join(data, "train/good/a.dcm")))) == nil {
		t.Fatal("the data set has no planted values")
	}
	damaged := t.TempDir()
	whole := read(t, filepath.Join(data, "test/good/a.dcm"))
	write(t, damaged, "short.dcm", whole[:len(whole)/2])
	write(t, damaged, "photometric.dcm", bytes.Replace(whole, []byte("MONOCHROME2 "), []byte("PLANTEDNAME "), 1))
	write(t, damaged, "syntax.dcm", bytes.Replace(whole, []byte("1.2.840.10008.1.2.1\x00"), []byte("PLANTEDID PLANTEDID "), 1))
	write(t, damaged, "frames.dcm", dicomOf(image.NewGray(image.Rect(0, 0, 4, 4)), dicomElement(0x0028, 0x1050, "DS", "PLANTEDID")))
	write(t, damaged, "table.dcm", dicomOf(image.NewGray(image.Rect(0, 0, 4, 4)), dicomSequence(0x0028, 0x3010,
		dicomElement(0x0028, 0x3003, "LO", "PLANTEDPRIVATE")+dicomElement(0x0028, 0x3002, "US", "PLANTE"))))
	write(t, damaged, "groups.dcm", plantedGroups(t, "PLANTEDID"))
	write(t, filepath.Join(data, "test/good"), "groups.dcm", plantedGroups(t, "100"))
	write(t, filepath.Join(data, "train/good"), "groups.dcm", plantedGroups(t, "100"))
	model := filepath.Join(out, "model.zip")
	for _, c := range []struct {
		status int
		args   []string
	}{
		{exitNormal, []string{"train", filepath.Join(data, "train/good"), "--level", "1", "--image-size", "32", "--out", model}},
		{exitNormal, []string{"inspect", model}},
		{-1, []string{"detect", "--model", model, "--heatmap", filepath.Join(out, "heat"), "--pictures", filepath.Join(out, "pictures"), filepath.Join(data, "test")}},
		{-1, []string{"detect", "--json", "--model", model, filepath.Join(data, "test/crack")}},
		{exitError, []string{"detect", "--json", "--model", model, damaged}},
		{exitNormal, []string{"evaluate", data, "--model", model, "--report", filepath.Join(out, "report.html")}},
		{exitNormal, []string{"calibrate", model, filepath.Join(data, "train/good"), "--out", filepath.Join(out, "calibrated.zip")}},
		{exitNormal, []string{"verify", model, filepath.Join(data, "test/good/a.dcm")}},
	} {
		r := run(t, c.args...)
		if c.status >= 0 && r.status != c.status || c.status < 0 && r.status == exitError {
			t.Errorf("%v: exit %d: %s%s", c.args, r.status, r.stdout, r.stderr)
		}
		if found := leaks(r.stdout + r.stderr); found != nil {
			t.Errorf("%v prints %v:\n%s%s", c.args, found, r.stdout, r.stderr)
		}
		if strings.Contains(r.stderr, "skipped") && c.args[0] == "train" {
			t.Errorf("%s", r.stderr)
		}
	}
	leaksNothing(t, out)
}

func TestDICOM_LeavesNothingOfThePatientInTheService(t *testing.T) {
	data := dicomData(t)
	var packed bytes.Buffer
	z := zip.NewWriter(&packed)
	if err := z.AddFS(os.DirFS(filepath.Join(data, "train/good"))); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	s := serve(t, nil, "--addr", "127.0.0.1:0", "--log-level", "debug")
	post := func(path string, status int, parts map[string][]byte) []byte {
		t.Helper()
		var body bytes.Buffer
		w := multipart.NewWriter(&body)
		for field, content := range parts {
			part, err := w.CreateFormFile(field, field+".bin")
			if err == nil {
				_, err = part.Write(content)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if path == "/train" {
			_ = w.WriteField("level", "1")
			_ = w.WriteField("image_size", "32")
		}
		_ = w.Close()
		res, err := http.Post("http://"+s.address+path, w.FormDataContentType(), &body)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		answer, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode != status {
			t.Fatalf("%s: %d, %v: %.500s", path, res.StatusCode, err, answer)
		}
		var headers bytes.Buffer
		_ = res.Header.Write(&headers)
		if found := leaks(string(answer) + headers.String()); found != nil {
			t.Errorf("%s answers %v", path, found)
		}
		return answer
	}
	model := post("/train", http.StatusOK, map[string][]byte{"zipFile": packed.Bytes()})
	out := t.TempDir()
	write(t, out, "model.zip", model)
	leaksNothing(t, out)
	crack := read(t, filepath.Join(data, "test/crack/a.dcm"))
	verdict := post("/detect", http.StatusOK, map[string][]byte{"modelFile": model, "imageFile": crack})
	if !bytes.Contains(verdict, []byte("is_anomaly")) {
		t.Errorf("%s", verdict)
	}
	frames := dicomOf(image.NewGray(image.Rect(0, 0, 8, 8)), "")
	frames = bytes.Replace(frames, []byte(dicomElement(0x0028, 0x0010, "US", "\x08\x00")), []byte(dicomElement(0x0028, 0x0008, "IS", "2")+dicomElement(0x0028, 0x0010, "US", "\x04\x00")), 1)
	if answer := post("/detect", http.StatusOK, map[string][]byte{"modelFile": model, "imageFile": frames}); !bytes.Contains(answer, []byte(`"frames":[{"frame":1,`)) {
		t.Errorf("%s, expected the frames", answer)
	}
	post("/detect", http.StatusUnprocessableEntity, map[string][]byte{"modelFile": model, "imageFile": crack[:len(crack)/2]})
	post("/detect", http.StatusUnprocessableEntity, map[string][]byte{"modelFile": model, "imageFile": bytes.Replace(crack, []byte("MONOCHROME2 "), []byte("PLANTEDNAME "), 1)})
	s.stop(t, syscall.SIGTERM)
	if found := leaks(s.log.String()); found != nil || !strings.Contains(s.log.String(), "/detect") {
		t.Errorf("the log has %v:\n%s", found, s.log)
	}
}

func TestDetect_JudgesADICOMAsTheSamePixelsInAPNG(t *testing.T) {
	dir := t.TempDir()
	for i, f := range tileFiles(t, "test/crack", 4) {
		m := greyTile(t, f)
		name := string(rune('a' + i))
		write(t, dir, name+".1.png", encoded(t, m))
		write(t, dir, name+".2.dcm", dicomOf(m, ""))
		inverted := image.NewGray(m.Rect)
		for y := range m.Rect.Dy() {
			for x := range m.Rect.Dx() {
				inverted.SetGray(x, y, color.Gray{Y: 255 - m.GrayAt(x, y).Y})
			}
		}
		// Without the ending of an image; white is 0.
		write(t, dir, name+".3", bytes.Replace(dicomOf(inverted, ""), []byte("MONOCHROME2"), []byte("MONOCHROME1"), 1))
	}
	list := entries(t, run(t, "detect", "--json", "--model", smallModel(t), dir))
	if len(list) != 12 {
		t.Fatalf("%d entries, expected 12", len(list))
	}
	for i, e := range list {
		if e.Error != nil || *e.Value != *list[i/3*3].Value {
			t.Errorf("%+v differs from %+v", e, list[i/3*3])
		}
	}
}

// squareTile returns the middle of a tile, 128 pixels a side.
func squareTile(t testing.TB, path string) *image.Gray {
	t.Helper()
	tile, square := greyTile(t, path), image.NewGray(image.Rect(0, 0, 128, 128))
	draw.Draw(square, square.Rect, tile, image.Pt(tile.Rect.Dx()/2-64, tile.Rect.Dy()/2-64), draw.Src)
	return square
}

// dicomFrames returns a DICOM file of frames of one size.
func dicomFrames(frames ...*image.Gray) []byte {
	all := image.NewGray(image.Rect(0, 0, frames[0].Rect.Dx(), 0))
	for _, m := range frames {
		all.Pix = append(all.Pix, m.Pix...)
	}
	all.Rect.Max.Y = frames[0].Rect.Dy() * len(frames)
	file := dicomOf(all, "")
	rows := func(n int) []byte {
		return []byte(dicomElement(0x0028, 0x0010, "US", string(binary.LittleEndian.AppendUint16(nil, uint16(n)))))
	}
	number := dicomElement(0x0028, 0x0008, "IS", strconv.Itoa(len(frames)))
	return bytes.Replace(file, rows(all.Rect.Dy()), append([]byte(number), rows(frames[0].Rect.Dy())...), 1)
}

func TestDetect_JudgesEachFrameAsAnImage(t *testing.T) {
	dir, heat := t.TempDir(), t.TempDir()
	var frames []*image.Gray
	for i, f := range append(tileFiles(t, "test/good", 2), tileFiles(t, "test/crack", 1)...) {
		frames = append(frames, squareTile(t, f))
		write(t, dir, string(rune('a'+i))+".png", encoded(t, frames[i]))
	}
	write(t, dir, "d.dcm", dicomFrames(frames...))
	r := run(t, "detect", "--json", "--model", smallModel(t), "--heatmap", heat, dir)
	list := entries(t, r)
	if len(list) != 6 {
		t.Fatalf("%d entries, expected 6: %s", len(list), r.stderr)
	}
	for i := range 3 {
		e, same := list[3+i], list[i]
		if e.Error != nil || e.File != fmt.Sprintf("%s#%d", filepath.Join(dir, "d.dcm"), i+1) || *e.Value != *same.Value {
			t.Errorf("%+v, expected the verdict of %+v", e, same)
		}
		drawn := filepath.Join(heat, fmt.Sprintf("0004-d.dcm#%d.png", i+1))
		if !bytes.Equal(read(t, drawn), read(t, filepath.Join(heat, fmt.Sprintf("%04d-%c.png.png", i+1, 'a'+i)))) {
			t.Errorf("%s differs from the drawing of the same image", drawn)
		}
	}
	if r := run(t, "detect", "--model", smallModel(t), filepath.Join(dir, "d.dcm")); !strings.Contains(r.stdout, "d.dcm#3 ") || !strings.Contains(r.stdout, "3 images: ") {
		t.Errorf("%s%s", r.stdout, r.stderr)
	}
}

func TestDetect_NamesTheFrameThatCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	data := read(t, "../../testdata/dicom/rle_frames.dcm")
	data[bytes.LastIndex(data, []byte("\x02\x00\x00\x00\x40\x00\x00\x00"))] = 9 // segments
	write(t, dir, "a.dcm", data)
	r := run(t, "detect", "--json", "--model", smallModel(t), dir)
	list := entries(t, r)
	if r.status != exitError || len(list) != 3 || list[0].Error != nil || list[1].Error != nil || list[2].Error == nil || !strings.Contains(*list[2].Error, "frame 3 of 3") {
		t.Errorf("exit %d: %s", r.status, r.stdout)
	}
}

func TestTrain_LearnsFromEachFrame(t *testing.T) {
	dir, out := t.TempDir(), t.TempDir()
	var frames []*image.Gray
	for i, f := range tileFiles(t, "train/good", 12) {
		m := squareTile(t, f)
		frames = append(frames, m)
		write(t, dir, fmt.Sprintf("%02d.png", i), encoded(t, m))
	}
	score := map[string]float64{}
	for name, files := range map[string]map[string][]byte{
		"images": nil,
		"frames": {"a.dcm": dicomFrames(frames[:5]...), "b": dicomFrames(frames[5:11]...), "c.dcm": dicomOf(frames[11], "")},
	} {
		from := dir
		if files != nil {
			from = t.TempDir()
			for file, data := range files {
				write(t, from, file, data)
			}
		}
		model := filepath.Join(out, name+".zip")
		r := run(t, "train", from, "--level", "1", "--image-size", "32", "--out", model)
		if r.status != exitNormal || files != nil && !strings.Contains(r.stdout+r.stderr, "11 of the 12 images are frames of 2 DICOM files") {
			t.Fatalf("exit %d: %s%s", r.status, r.stdout, r.stderr)
		}
		score[name] = *entries(t, run(t, "detect", "--json", "--model", model, filepath.Join(dir, "00.png")))[0].Value
	}
	if a, b := score["images"], score["frames"]; a != b || a == 0 {
		t.Errorf("a model of images scores %v, one of the same frames %v", a, b)
	}
}

func TestEvaluate_CountsEachFrame(t *testing.T) {
	data, out := dicomData(t), t.TempDir()
	var frames []*image.Gray
	for _, f := range tileFiles(t, "test/crack", 4) {
		frames = append(frames, squareTile(t, f))
	}
	write(t, filepath.Join(data, "test/crack"), "many.dcm", dicomFrames(frames...))
	report := filepath.Join(out, "report.html")
	r := run(t, "evaluate", data, "--json", "--model", smallModel(t), "--report", report)
	var result struct {
		Defects []struct{ Images int } `json:"defects"`
	}
	if err := json.Unmarshal([]byte(r.stdout), &result); err != nil || len(result.Defects) != 1 || result.Defects[0].Images != 10 {
		t.Errorf("exit %d, %v: %s%s, expected 10 defective images", r.status, err, r.stdout, r.stderr)
	}
	if page := string(read(t, report)); !strings.Contains(page, "many.dcm#") {
		t.Error("the report names no frame")
	}
}
