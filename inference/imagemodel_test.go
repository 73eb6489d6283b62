package inference

import (
	"bytes"
	"image"
	"image/color"
	"image/png"
	"math"
	"os"
	"path/filepath"
	"testing"

	onnxruntime "github.com/yalue/onnxruntime_go"

	"github.com/deepmed/anomaly/exporter"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/testkit"
	"github.com/deepmed/anomaly/models"
)

// imageModel runs the exported graph whose input is the decoded image.
type imageModel struct {
	session *onnxruntime.DynamicAdvancedSession
	size    models.Size
}

func newImageModel(t *testing.T, m *models.Model) imageModel {
	t.Helper()
	onnx, err := exporter.ImageModel(m)
	if err != nil {
		t.Fatal(err)
	}
	s, err := onnxruntime.NewDynamicAdvancedSessionWithONNXData(onnx, []string{"image"},
		[]string{"reconstruction_error", "is_anomaly", "anomaly_map"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Destroy() })
	return imageModel{s, m.Input()}
}

func (m imageModel) run(t *testing.T, img *imagefile.RGB) (score float64, anomaly bool, perPixel []float32) {
	t.Helper()
	return runImage(t, m, img.W, img.H, img.Pix)
}

// runImage runs the graph on samples of one byte or of float32.
func runImage[T uint8 | float32](t *testing.T, m imageModel, w, h int, samples []T) (score float64, anomaly bool, perPixel []float32) {
	t.Helper()
	in, err := onnxruntime.NewTensor(onnxruntime.NewShape(int64(h), int64(w), 3), samples)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Destroy()
	out := make([]onnxruntime.Value, 3)
	if err := m.session.Run([]onnxruntime.Value{in}, out); err != nil {
		t.Fatal(err)
	}
	for _, v := range out {
		defer v.Destroy()
	}
	errs, verdict, plane := out[0].(*onnxruntime.Tensor[float32]), out[1].(*onnxruntime.Tensor[bool]), out[2].(*onnxruntime.Tensor[float32])
	if s := plane.GetShape(); len(errs.GetData()) != 1 || len(verdict.GetData()) != 1 || len(s) != 2 || int(s[0]) != m.size.H || int(s[1]) != m.size.W {
		t.Fatalf("shapes %v, %v, %v", errs.GetShape(), verdict.GetShape(), s)
	}
	return float64(errs.GetData()[0]), verdict.GetData()[0], append([]float32(nil), plane.GetData()...)
}

// resizeTolerance is the largest relative difference of the scores: the order of the
// two passes of ONNX Runtime's resize can differ.
const resizeTolerance = 1e-3

func TestImageModel_ReturnsTheScoresOfDetect(t *testing.T) {
	d := goldenDetector(t)
	m := newImageModel(t, d.Model())
	var files []string
	for _, pattern := range []string{"good", "blowhole", "crack"} {
		found, err := filepath.Glob(filepath.Join(testkit.Root(t), "testdata", "tiles", "test", pattern, "*"))
		if err != nil || len(found) == 0 {
			t.Fatal(pattern, err)
		}
		files = append(files, found[:5]...)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		decoded, err := imagefile.Decode(data, imagefile.Options{})
		if err != nil {
			t.Fatal(err)
		}
		checkImageModel(t, file, d, m, data, decoded)
	}
}

// The sizes are below, at and far above the network's, in both orientations.
func TestImageModel_AcceptsImagesOfAnySize(t *testing.T) {
	d := goldenDetector(t)
	m := newImageModel(t, d.Model())
	s := d.Size().W
	for _, size := range [][2]int{{1, 1}, {3, 200}, {s, s}, {s / 2, s / 3}, {s + 1, s - 1}, {9 * s, 2 * s}, {s, 17 * s}, {1000, 1}} {
		picture := image.NewNRGBA(image.Rect(0, 0, size[0], size[1]))
		for y := range size[1] {
			for x := range size[0] {
				wave := 127 + 100*math.Sin(float64(x)/9)*math.Cos(float64(y)/7)
				picture.Set(x, y, color.NRGBA{uint8(wave), uint8(255 - wave), uint8(x + y), 255})
			}
		}
		var data bytes.Buffer
		if err := png.Encode(&data, picture); err != nil {
			t.Fatal(err)
		}
		decoded, err := imagefile.Decode(data.Bytes(), imagefile.Options{})
		if err != nil {
			t.Fatal(err)
		}
		checkImageModel(t, picture.Rect.String(), d, m, data.Bytes(), decoded)
	}
}

func checkImageModel(t *testing.T, what string, d *Detector, m imageModel, file []byte, decoded *imagefile.RGB) {
	t.Helper()
	want, err := d.Detect(t.Context(), file, nil, imagefile.DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	score, anomaly, perPixel := m.run(t, decoded)
	if relative := math.Abs(score-want.ReconstructionError) / want.ReconstructionError; !(relative <= resizeTolerance) {
		t.Errorf("%s: score %.8f, Detect's %.8f", what, score, want.ReconstructionError)
	}
	if anomaly != (score > want.Threshold) {
		t.Errorf("%s: is_anomaly %v at a score of %v and a threshold of %v", what, anomaly, score, want.Threshold)
	}
	sum := 0.0
	for _, v := range perPixel {
		sum += float64(v)
	}
	if mean := sum / float64(len(perPixel)); !(math.Abs(mean-score) <= 1e-5*score) {
		t.Errorf("%s: the mean of the map is %v, the score %v", what, mean, score)
	}
}

// An image whose score equals the threshold is normal, in float64 and in the graph's
// float32.
func TestImageModel_DecidesAtTheThresholdLikeDetect(t *testing.T) {
	d := goldenDetector(t)
	img := &imagefile.RGB{W: d.Size().W, H: d.Size().W, Pix: make([]byte, 3*d.Size().W*d.Size().W)}
	for i := range img.Pix {
		img.Pix[i] = byte(i * 7)
	}
	at, _, _ := newImageModel(t, d.Model()).run(t, img)
	for _, threshold := range []float64{at, math.Nextafter(at, 0), math.Nextafter(at, 1), float64(math.Nextafter32(float32(at), 0)), at / 2, 2 * at} {
		m := *d.Model()
		m.Metadata.Threshold = threshold
		score, anomaly, _ := newImageModel(t, &m).run(t, img)
		if score != at || anomaly != (at > threshold) {
			t.Errorf("threshold %v: score %v, is_anomaly %v", threshold, score, anomaly)
		}
	}
}
