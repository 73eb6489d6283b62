package api

import (
	"context"
	"errors"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/registry"
	"github.com/deepmed/anomaly/models"
)

// headerModelSHA256 is the SHA-256 of the file of the version that judged a stored model's
// images, as model_sha256 in the answer's JSON.
const headerModelSHA256 = "X-Model-Sha256"

// judge judges the images of a request. It must be released.
type judge interface {
	judge(ctx context.Context, timer stageTimer, image []byte, meta *models.Metadata, explain explanation) (imageResult, error)
	release()
}

// localJudge judges with a model that this process has loaded.
type localJudge struct {
	server *Server
	d      *inference.Detector
	free   func()
	// name is that of the stored model, whose monitor gets the verdicts; empty for an uploaded
	// one.
	name string
}

func (j *localJudge) judge(ctx context.Context, timer stageTimer, image []byte, meta *models.Metadata, explain explanation) (imageResult, error) {
	r, err := j.server.detectImage(ctx, timer, j.d, image, meta, explain)
	if err == nil && j.name != "" && meta == nil {
		j.server.judged(j.name, r.Verdict)
	}
	return r, err
}

func (j *localJudge) release() { j.free() }

// namedJudge returns the judge of a stored model's current version, and the version's SHA-256.
func (s *Server) namedJudge(ctx context.Context, name string) (judge, string, error) {
	if s.node != nil {
		if j, version := s.node.remoteJudge(ctx, name); j != nil {
			return j, version, nil
		}
	}
	d, release, err := s.namedDetector(ctx, name)
	if err != nil {
		return nil, "", err
	}
	return &localJudge{s, d, release, name}, d.Model().SHA256, nil
}

// detectorOf returns the detector of a version of a stored model, which need not be the current
// one any more. It remains usable until it is released.
func (s *Server) detectorOf(ctx context.Context, e registry.Entry) (*inference.Detector, func(), error) {
	return s.cache.Get(ctx, e.SHA256, func() (*inference.Detector, error) {
		file, err := s.registry.Bytes(s.base, e)
		if errors.Is(err, registry.ErrChanged) {
			_, file, err = s.registry.VersionBytes(s.base, e.Name, e.SHA256)
			if errors.Is(err, registry.ErrNoVersion) {
				err = errReplaced
			}
		}
		if err != nil {
			return nil, err
		}
		return s.loadDetector(file)
	})
}
