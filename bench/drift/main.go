// Command drift measures after how many images a running service raises its alarm for a
// model. It sends the images of each folder in several random orders, and resets the alarm
// before each. See docs/detection.md.
package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"slices"
)

func main() {
	server := flag.String("server", "http://127.0.0.1:5029", "URL of the service")
	model := flag.String("model", "tiles", "name of a stored model")
	orders := flag.Int("orders", 20, "random orders of each folder")
	flag.Parse()
	for _, folder := range flag.Args() {
		if err := measure(*server+"/models/"+*model, folder, *orders); err != nil {
			fmt.Fprintln(os.Stderr, "drift:", err)
			os.Exit(1)
		}
	}
}

// measure prints the number of images until the alarm, over random orders of a folder.
func measure(model, folder string, orders int) error {
	files, err := filepath.Glob(filepath.Join(folder, "*"))
	if err != nil || len(files) == 0 {
		return cmp.Or(err, fmt.Errorf("no files in %s", folder))
	}
	images := make([][]byte, len(files))
	for i, f := range files {
		if images[i], err = os.ReadFile(f); err != nil {
			return err
		}
	}
	var alarms []int
	most, above := 0.0, 0
	for k := range orders {
		if _, err := post[drift](model+"/drift/reset", "", nil); err != nil {
			return err
		}
		rng := rand.New(rand.NewPCG(uint64(k), 1))
		alarm := 0
		for i, at := range rng.Perm(len(images)) {
			v, err := send(model+"/detect", images[at])
			if err != nil {
				return err
			}
			if k == 0 && v.IsAnomaly {
				above++
			}
			if alarm == 0 && len(v.Warnings) > 0 {
				alarm = i + 1
			}
			if alarm > 0 && k > 0 {
				break
			}
		}
		d, err := scores(model)
		if err != nil {
			return err
		}
		most = max(most, d.Log10Evidence)
		if alarm > 0 {
			alarms = append(alarms, alarm)
		}
	}
	slices.Sort(alarms)
	line := fmt.Sprintf("%s: %d images, %.0f %% above the threshold, %d of %d orders raise an alarm", folder, len(images), 100*float64(above)/float64(len(images)), len(alarms), orders)
	if len(alarms) > 0 {
		line += fmt.Sprintf(", after %d images (median), %d to %d", alarms[len(alarms)/2], alarms[0], alarms[len(alarms)-1])
	}
	fmt.Printf("%s; largest log10 of the evidence at the end %.1f\n", line, most)
	return nil
}

type verdict struct {
	IsAnomaly bool `json:"is_anomaly"`
	Warnings  []string
}

type drift struct {
	Log10Evidence float64 `json:"log10_evidence"`
}

func send(url string, image []byte) (verdict, error) {
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	part, err := w.CreateFormFile("imageFile", "image")
	if err == nil {
		_, err = part.Write(image)
	}
	if err = cmp.Or(err, w.Close()); err != nil {
		return verdict{}, err
	}
	return post[verdict](url, w.FormDataContentType(), &b)
}

func post[T any](url, kind string, body io.Reader) (T, error) {
	return read[T](http.Post(url, kind, body))
}

func scores(model string) (drift, error) {
	a, err := read[struct{ Drift drift }](http.Get(model + "/scores"))
	return a.Drift, err
}

func read[T any](res *http.Response, err error) (answer T, _ error) {
	if err != nil {
		return answer, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(res.Body, 1<<10))
		return answer, fmt.Errorf("%s: %s: %s", res.Request.URL, res.Status, text)
	}
	return answer, json.NewDecoder(res.Body).Decode(&answer)
}
