package main

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"io/fs"
	"math/rand/v2"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/disintegration/imaging"
)

const (
	uploadBytes = 2 << 30
	// uploadPictures is the number of distinct images in the upload.
	uploadPictures = 16
	uploadSide     = 1024 // pixels
	// uploadResident is the permitted memory, in MB.
	uploadResident = 1024
)

// upload streams a 2 GB ZIP to POST /train, and checks that the service neither keeps
// it in memory nor leaves it on disk.
func upload(ctx context.Context, _ options, _, dir string) error {
	pictures, err := largePictures(filepath.Join(dir, "upload"))
	if err != nil {
		return err
	}
	temp := filepath.Join(dir, "temp")
	if err := os.MkdirAll(temp, 0o755); err != nil {
		return err
	}
	s, err := startService(ctx, "ours", "bin/anomaly", "serve", "--temp-dir", temp, "--log-level", "error")
	if err != nil {
		return err
	}
	defer s.stop()
	before := s.memory("VmHWM")
	body, into := io.Pipe()
	form := multipart.NewWriter(into)
	sent := 0
	go func() {
		var err error
		sent, err = writeUpload(form, pictures)
		into.CloseWithError(err)
	}()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url+"/train", body)
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", form.FormDataContentType())
	began := time.Now()
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d: %.200s", res.StatusCode, answer)
	}
	if err != nil {
		return err
	}
	seconds, peak := time.Since(began).Seconds(), s.memory("VmHWM")
	left, err := bytesBelow(temp) // the server has a folder there while it runs
	if err != nil {
		return err
	}
	t := table("UPLOAD, MB", "images", "seconds", "MB before", "peak MB", "bytes left")
	fmt.Fprintf(t, "%d\t%d\t%.0f\t%.0f\t%.0f\t%d\n\n", uploadBytes>>20, sent, seconds, before, peak, left)
	if err := t.Flush(); err != nil {
		return err
	}
	if left > 0 {
		return fmt.Errorf("%d bytes are left in %s", left, temp)
	}
	if peak > uploadResident {
		return fmt.Errorf("%.0f MB of memory, expected at most %d", peak, uploadResident)
	}
	return nil
}

// bytesBelow returns the total size of the files below a folder.
func bytesBelow(folder string) (size int64, err error) {
	err = filepath.WalkDir(folder, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			size += info.Size()
		}
		return err
	})
	return size, err
}

// writeUpload writes the form and returns the number of images in its ZIP. They are
// stored: PNG files do not compress.
func writeUpload(form *multipart.Writer, pictures [][]byte) (int, error) {
	for name, value := range map[string]string{"level": "1", "image_size": "64"} {
		if err := form.WriteField(name, value); err != nil {
			return 0, err
		}
	}
	part, err := form.CreateFormFile("zipFile", "normal.zip")
	if err != nil {
		return 0, err
	}
	z := zip.NewWriter(part)
	n := 0
	for size := 0; size < uploadBytes; n++ {
		picture := pictures[n%len(pictures)]
		w, err := z.CreateHeader(&zip.FileHeader{Name: fmt.Sprintf("%05d.png", n), Method: zip.Store})
		if err != nil {
			return n, err
		}
		if _, err := w.Write(picture); err != nil {
			return n, err
		}
		size += len(picture)
	}
	return n, errors.Join(z.Close(), form.Close())
}

// largePictures returns PNG files of a few megabytes: enlarged tiles with noise,
// which PNG cannot compress.
func largePictures(folder string) ([][]byte, error) {
	if err := augmented(folder, uploadPictures, uploadSide, uploadSide); err != nil {
		return nil, err
	}
	r := rand.New(rand.NewPCG(3, 4))
	found, err := filepath.Glob(filepath.Join(folder, "*.jpg"))
	if err != nil {
		return nil, err
	}
	var pictures [][]byte
	for _, path := range found {
		img, err := imaging.Open(path)
		if err != nil {
			return nil, err
		}
		noisy := imaging.AdjustFunc(img, func(c color.NRGBA) color.NRGBA {
			noise := func(v uint8) uint8 { return uint8(min(max(int(v)+r.IntN(33)-16, 0), 255)) }
			return color.NRGBA{noise(c.R), noise(c.G), noise(c.B), 255}
		})
		var encoded bytes.Buffer
		encoder := png.Encoder{CompressionLevel: png.BestSpeed}
		if err := encoder.Encode(&encoded, image.Image(noisy)); err != nil {
			return nil, err
		}
		pictures = append(pictures, encoded.Bytes())
	}
	return pictures, nil
}
