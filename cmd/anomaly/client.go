package main

import (
	"archive/zip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime/multipart"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/deepmed/anomaly/internal/api"
	"github.com/deepmed/anomaly/internal/files"
	"github.com/spf13/cobra"
)

// serviceClient sends requests to a service.
type serviceClient struct {
	server, tokenFile string
	token             string
}

func (s *serviceClient) add(c *cobra.Command) {
	c.Flags().StringVar(&s.server, "server", "", "`URL` of the service (default: http://127.0.0.1:$PORT, http://127.0.0.1:"+defaultPort+" without PORT)")
	c.Flags().StringVar(&s.tokenFile, "token-file", "", "file with the service's token (default: no token)")
}

// open checks the flags. It must be called first.
func (s *serviceClient) open() (err error) {
	if s.server == "" {
		s.server = "http://" + address("")
	}
	if u, err := url.Parse(s.server); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("--server is %q, expected a URL such as http://127.0.0.1:%s", s.server, defaultPort)
	}
	s.server = strings.TrimSuffix(s.server, "/")
	if s.tokenFile != "" {
		s.token, err = api.ReadToken(s.tokenFile)
	}
	return err
}

// do sends a request. It returns the error of the service for a status of 400 and above.
// The caller must close the body.
func (s *serviceClient) do(ctx context.Context, method, path string, header http.Header, body io.Reader) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, s.server+path, body)
	if err != nil {
		return nil, err
	}
	if header != nil {
		r.Header = header
	}
	if s.token != "" {
		r.Header.Set("Authorization", "Bearer "+s.token)
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, err
	}
	if res.StatusCode < http.StatusBadRequest {
		return res, nil
	}
	defer res.Body.Close()
	const maxError = 64 << 10
	var answer struct{ Error string }
	if err := json.NewDecoder(io.LimitReader(res.Body, maxError)).Decode(&answer); err != nil || answer.Error == "" {
		return nil, fmt.Errorf("%s responds with status %s", s.server, res.Status)
	}
	return nil, &serviceError{res.StatusCode, answer.Error}
}

// serviceError is an error that the service has answered.
type serviceError struct {
	status  int
	message string
}

func (e *serviceError) Error() string { return e.message }

// json sends a request and decodes its answer.
func (s *serviceClient) json(ctx context.Context, method, path string, header http.Header, body io.Reader, answer any) error {
	res, err := s.do(ctx, method, path, header, body)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(answer); err != nil {
		return fmt.Errorf("unexpected response: %w", err)
	}
	return nil
}

// download writes the answer of a GET of a path of the service to a file, completely or not
// at all.
func (s *serviceClient) download(ctx context.Context, path, file string) error {
	res, err := s.do(ctx, http.MethodGet, path, nil, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	return files.WriteAtomic(file, func(w io.Writer) error {
		n, err := io.Copy(w, res.Body)
		if err == nil && res.ContentLength >= 0 && n != res.ContentLength {
			err = io.ErrUnexpectedEOF
		}
		return err
	})
}

// formFile is a file of a form.
type formFile struct {
	part, name string
	write      func(io.Writer) error // writes its content
}

// uploadForm returns the body of a form and its content type. Files are read while they
// are sent; those without a path are left out. The caller must close the body.
func uploadForm(fields, paths [][2]string) (io.ReadCloser, string) {
	var list []formFile
	for _, path := range paths {
		if path[1] != "" {
			list = append(list, formFile{path[0], filepath.Base(path[1]), func(w io.Writer) error { return sendFile(w, path[1]) }})
		}
	}
	return formOf(fields, list)
}

// formOf is uploadForm with files that need not be on disk.
func formOf(fields [][2]string, list []formFile) (io.ReadCloser, string) {
	r, w := io.Pipe()
	form := multipart.NewWriter(w)
	go func() {
		err := func() error {
			for _, field := range fields {
				if err := form.WriteField(field[0], field[1]); err != nil {
					return err
				}
			}
			for _, f := range list {
				part, err := form.CreateFormFile(f.part, f.name)
				if err == nil {
					err = f.write(part)
				}
				if err != nil {
					return err
				}
			}
			return form.Close()
		}()
		w.CloseWithError(err)
	}()
	return r, form.FormDataContentType()
}

// sendFile writes a file, or a zip of the regular files in a folder.
func sendFile(w io.Writer, path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		f, err := files.OpenRegular(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, f)
		return err
	}
	z := zip.NewWriter(w)
	err = filepath.WalkDir(path, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := os.Stat(name)
		if err != nil || !info.Mode().IsRegular() {
			return nil
		}
		relative, err := filepath.Rel(path, name)
		if err != nil {
			return err
		}
		// Images are compressed already.
		entry, err := z.CreateHeader(&zip.FileHeader{Name: filepath.ToSlash(relative), Method: zip.Store, Modified: info.ModTime()})
		if err != nil {
			return err
		}
		f, err := files.OpenRegular(name)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(entry, f)
		return err
	})
	return errors.Join(err, z.Close())
}
