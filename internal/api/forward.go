package api

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/deepmed/anomaly/inference"
	"github.com/deepmed/anomaly/internal/cluster"
	"github.com/deepmed/anomaly/internal/imagefile"
	"github.com/deepmed/anomaly/internal/registry"
	"github.com/deepmed/anomaly/internal/telemetry"
	"github.com/deepmed/anomaly/models"
	"github.com/nats-io/nats.go"
)

const (
	// detectQuestion is the kind of question that asks a node to judge an image.
	detectQuestion = "detect"
	// forwardTime is the longest time that a node is waited for. It is at most half of what is
	// left of the request's time, so that this node can still judge the image.
	forwardTime = 3 * time.Second
)

// Headers of a question.
const (
	questionModel   = "Model"
	questionVersion = "Sha256"
	questionExplain = "Explain" // missing, "true" or "overlay"
)

// forwarded is the answer of another node: a result, or the error of the image.
type forwarded struct {
	Verdict  *inference.Verdict  `json:"verdict,omitempty"`
	Evidence *inference.Evidence `json:"evidence,omitempty"`
	Error    string              `json:"error,omitempty"`
	// Kind is the kind of the error, as in imageErrors.
	Kind string `json:"kind,omitempty"`
}

// imageErrors are the errors that an image has on every node. Any other is the node's own, and
// the image is judged by the asker.
var imageErrors = map[string]error{
	"image": imagefile.ErrImage, "large": imagefile.ErrTooLarge, "finite": inference.ErrNotFinite, "map": inference.ErrNoMap, "measure": inference.ErrMeasure,
	"grid": inference.ErrGrid,
}

// forwardedError is an error of imageErrors, with the text of the other node.
type forwardedError struct {
	text string
	is   error
}

func (e *forwardedError) Error() string { return e.text }
func (e *forwardedError) Unwrap() error { return e.is }

// remoteJudge asks the owners of a model, and judges itself what they do not answer. Its verdicts
// are all by one version.
type remoteJudge struct {
	node   *node
	entry  registry.Entry
	owners []string

	mu    sync.Mutex
	local *localJudge // nil until an owner did not answer
}

// remoteJudge returns a judge that asks other nodes, with the version that judges, or nil if
// this node judges itself: it has the model loaded, or owns it.
func (n *node) remoteJudge(ctx context.Context, name string) (judge, string) {
	e, err := n.server.registry.Get(ctx, name)
	if err != nil || n.role() != cluster.RoleServe || n.server.cache.Has(e.SHA256) {
		return nil, "" // the work of a worker is not left to the services
	}
	owners := n.members.Owners(name, cluster.RoleServe, ownersOfModel)
	for _, id := range owners {
		if id == n.members.Self() {
			return nil, ""
		}
	}
	if len(owners) == 0 {
		return nil, ""
	}
	return &remoteJudge{node: n, entry: e, owners: owners}, e.SHA256
}

func (j *remoteJudge) judge(ctx context.Context, timer stageTimer, image []byte, meta *models.Metadata, explain explanation) (imageResult, error) {
	local := j.existing()
	if local == nil && meta == nil {
		r, err := j.ask(ctx, image, explain)
		if err == nil || isImageError(err) {
			timer.done(stageInfer)
			j.node.server.metrics.forwarded("answered")
			return r, err
		}
		if ctx.Err() != nil {
			return imageResult{}, context.Cause(ctx)
		}
		if errors.Is(err, cluster.ErrDeclined) || errors.Is(err, cluster.ErrTooLarge) {
			j.node.server.metrics.forwarded("declined")
		} else {
			j.node.server.metrics.forwarded("failed")
		}
	}
	local, err := j.fallBack(ctx)
	if err != nil {
		return imageResult{}, err
	}
	return local.judge(ctx, timer, image, meta, explain)
}

func isImageError(err error) bool {
	var f *forwardedError
	return errors.As(err, &f)
}

// ask asks the owners one after another.
func (j *remoteJudge) ask(ctx context.Context, image []byte, explain explanation) (r imageResult, err error) {
	ctx, span := telemetry.Begin(ctx, "detect at another node")
	defer func() { span.End(err) }()
	q := cluster.Question{Header: nats.Header{questionModel: {j.entry.Name}, questionVersion: {j.entry.SHA256}}, Data: image}
	if explain.wanted {
		q.Header.Set(questionExplain, "true")
		if explain.overlay {
			q.Header.Set(questionExplain, explainOverlay)
		}
	}
	telemetry.Inject(ctx, telemetry.Headers(q.Header))
	left := j.node.patience
	if at, ok := ctx.Deadline(); ok {
		left = min(left, time.Until(at)/2)
	}
	end := time.Now().Add(left)
	err = cluster.ErrNoAnswer
	for i, id := range j.owners {
		// Each has its part of what is left, so that one that hangs leaves time for the next.
		if left = time.Until(end) / time.Duration(len(j.owners)-i); left <= 0 {
			break
		}
		var data []byte
		if data, err = j.node.members.Ask(ctx, id, detectQuestion, q, left); err != nil {
			if ctx.Err() != nil || errors.Is(err, cluster.ErrTooLarge) {
				return r, err
			}
			continue
		}
		var a forwarded
		if err = json.Unmarshal(data, &a); err != nil {
			continue
		}
		if is := imageErrors[a.Kind]; is != nil {
			return r, &forwardedError{a.Error, is}
		}
		if a.Verdict == nil || a.Verdict.ModelSHA256 != j.entry.SHA256 || explain.wanted && a.Evidence == nil {
			err = cluster.ErrNoAnswer
			continue
		}
		return imageResult{Verdict: a.Verdict, Evidence: a.Evidence}, nil
	}
	return r, err
}

func (j *remoteJudge) existing() *localJudge {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.local
}

// fallBack loads the model on this node.
func (j *remoteJudge) fallBack(ctx context.Context) (*localJudge, error) {
	if local := j.existing(); local != nil {
		return local, nil
	}
	d, release, err := j.node.server.detectorOf(ctx, j.entry)
	if err != nil {
		return nil, err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.local == nil {
		j.local = &localJudge{j.node.server, d, release, j.entry.Name}
	} else {
		release()
	}
	return j.local, nil
}

func (j *remoteJudge) release() {
	if local := j.existing(); local != nil {
		local.release()
	}
}

// answer answers the question of another node. It never asks a node itself. It declines when
// there is no slot for the image at once, or when the asker's version is not the current one.
func (n *node) answer(ctx context.Context, q cluster.Question) ([]byte, bool) {
	s := n.server
	if s.draining.Load() || !s.detectionSlots.tryAcquire() {
		return nil, false
	}
	defer s.detectionSlots.release()
	memory := &reservation{budget: &s.memory}
	defer memory.release()
	if memory.reserve(len(q.Data)) != nil {
		return nil, false
	}
	ctx, span := telemetry.BeginServer(telemetry.Extract(ctx, telemetry.Headers(q.Header)), "detect for another node")
	r, err := n.judgeQuestion(ctx, q)
	span.End(err)
	a := forwarded{Verdict: r.Verdict, Evidence: r.Evidence}
	if err != nil {
		for kind, is := range imageErrors {
			if errors.Is(err, is) {
				a = forwarded{Error: err.Error(), Kind: kind}
			}
		}
		if a.Kind == "" {
			if ctx.Err() == nil {
				s.log.Debug("cannot judge an image for another node", slog.String("name", q.Header.Get(questionModel)), slog.Any("error", err))
			}
			return nil, false
		}
	}
	data, err := json.Marshal(a)
	return data, err == nil
}

// judgeQuestion judges the image of a question with the version that it names.
func (n *node) judgeQuestion(ctx context.Context, q cluster.Question) (imageResult, error) {
	s := n.server
	name, version := q.Header.Get(questionModel), q.Header.Get(questionVersion)
	e, err := n.models.Get(ctx, name)
	if err == nil && e.SHA256 != version {
		e, err = n.models.Refresh(ctx, name)
	}
	if err != nil {
		return imageResult{}, err
	}
	if e.SHA256 != version {
		return imageResult{}, registry.ErrChanged
	}
	var explain explanation
	switch q.Header.Get(questionExplain) {
	case "":
	case explainOverlay:
		explain = explanation{wanted: true, overlay: true}
	default:
		explain.wanted = true
	}
	d, release, err := s.detectorOf(ctx, e)
	if err != nil {
		return imageResult{}, err
	}
	j := &localJudge{s, d, release, name}
	defer j.release()
	return j.judge(ctx, *s.metrics.timer(workDetect, time.Now()), q.Data, nil, explain)
}
