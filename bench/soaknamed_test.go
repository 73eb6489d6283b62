package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"

	"github.com/deepmed/anomaly/internal/registry"
)

// keeper changes one stored model, which no other client uses, so that it knows the
// expected response of each request.
type keeper struct {
	*soak
	name      string
	model     *soakModel
	threshold float64
	// scores are those of the current version by image; of a calibrated one, those that
	// were answered first. versions has the scores by SHA-256.
	scores   map[int]float64
	versions map[string]map[int]float64
	feedback map[string]int // numbers of the images by id
}

// keep changes a stored model of its own until the context is done: its threshold, its
// version, its feedback; now and then it begins anew. It leaves the model.
func (s *soak) keep(ctx context.Context, r *rand.Rand, name string) {
	k := &keeper{soak: s, name: name, model: s.models[r.IntN(len(s.models))]}
	if !k.begin(ctx) {
		return
	}
	steps := []func(context.Context, *rand.Rand){k.judge, k.judge, k.judge, k.give, k.give, k.list, k.withdraw, k.move, k.move, k.restore, k.plot, k.calibrate}
	for ctx.Err() == nil {
		if r.IntN(30) == 0 {
			k.ask(ctx, http.MethodDelete, "model removed", k.path(), form{}, http.StatusNoContent)
			k.ask(ctx, http.MethodGet, "of a removed model", k.path()+"/feedback", form{}, http.StatusNotFound)
			if !k.begin(ctx) {
				return
			}
		}
		steps[r.IntN(len(steps))](ctx, r)
	}
}

func (k *keeper) path() string { return "/models/" + k.name }

// right reports whether an image has the expected score.
func (k *keeper) right(image int, score float64) bool {
	if _, ok := k.scores[image]; !ok {
		k.scores[image] = score
	}
	return k.scores[image] == score
}

// begin stores the model.
func (k *keeper) begin(ctx context.Context) bool {
	k.feedback, k.scores = map[string]int{}, map[int]float64{}
	for i, v := range k.model.verdicts {
		k.scores[i], _ = v["anomaly_score"].(float64)
	}
	sum := sha256.Sum256(k.model.file)
	k.versions = map[string]map[int]float64{hex.EncodeToString(sum[:]): k.scores}
	k.threshold, _ = k.model.verdicts[0]["threshold"].(float64)
	for range 100 {
		if status, _ := k.ask(ctx, http.MethodPut, "model stored", k.path(), form{"application/octet-stream", k.model.file}, http.StatusCreated); status == http.StatusCreated {
			return true
		}
	}
	k.fault("%s could not be stored", k.name)
	return false
}

// decoded decodes a response of status 200 or 201, and reports whether it is one.
func (k *keeper) decoded(status int, body []byte, into any) bool {
	if status != http.StatusOK && status != http.StatusCreated {
		return false
	}
	if err := json.Unmarshal(body, into); err != nil {
		k.fault("%s: %v: %.300s", k.name, err, body)
		return false
	}
	return true
}

// judge compares a verdict with the expected score, and with the threshold.
func (k *keeper) judge(ctx context.Context, r *rand.Rand) {
	i := r.IntN(len(k.images))
	status, body := k.ask(ctx, http.MethodPost, "by changed name", k.path()+"/detect", formOf([2]any{"imageFile", k.images[i]}), http.StatusOK)
	var got struct {
		Score     float64 `json:"anomaly_score"`
		Threshold float64
		Anomalous bool `json:"is_anomaly"`
	}
	if k.decoded(status, body, &got) && (!k.right(i, got.Score) || got.Threshold != k.threshold || got.Anomalous != (got.Score > got.Threshold)) {
		k.fault("%s: %.300s; expected the score %v and the threshold %v", k.name, body, k.scores[i], k.threshold)
	}
}

// give posts an image of the feedback.
func (k *keeper) give(ctx context.Context, r *rand.Rand) {
	i := r.IntN(len(k.images))
	f := formOf([2]any{"imageFile", k.images[i]}, [2]any{"label", []string{"normal", "anomalous"}[r.IntN(2)]})
	status, body := k.ask(ctx, http.MethodPost, "feedback", k.path()+"/feedback", f, http.StatusCreated)
	var got struct {
		ID    string
		Score float64 `json:"anomaly_score"`
	}
	if !k.decoded(status, body, &got) {
		return
	}
	if sum := sha256.Sum256(k.images[i]); got.ID != hex.EncodeToString(sum[:]) || !k.right(i, got.Score) {
		k.fault("feedback of %s: %.300s; expected the score %v", k.name, body, k.scores[i])
	}
	k.feedback[got.ID] = i
}

// list compares the feedback with the images that were given.
func (k *keeper) list(ctx context.Context, _ *rand.Rand) {
	status, body := k.ask(ctx, http.MethodGet, "feedback listed", k.path()+"/feedback", form{}, http.StatusOK)
	var got struct {
		Feedback []struct {
			ID    string
			Score float64 `json:"anomaly_score"`
		}
	}
	if !k.decoded(status, body, &got) {
		return
	}
	right := len(got.Feedback) == len(k.feedback)
	for _, f := range got.Feedback {
		i, ok := k.feedback[f.ID]
		right = right && ok && k.right(i, f.Score)
	}
	if !right {
		k.fault("feedback of %s: %d images, expected %d: %.300s", k.name, len(got.Feedback), len(k.feedback), body)
	}
}

// withdraw removes an image of the feedback, after comparing it with the one that was given.
func (k *keeper) withdraw(ctx context.Context, _ *rand.Rand) {
	for id, i := range k.feedback { // any
		path := k.path() + "/feedback/" + id
		if status, body := k.ask(ctx, http.MethodGet, "image of the feedback", path+"/image", form{}, http.StatusOK); status == http.StatusOK && string(body) != string(k.images[i]) {
			k.fault("an image of the feedback of %s has other bytes", k.name)
		}
		// Removed also if the scores cannot be computed in time.
		k.ask(ctx, http.MethodDelete, "feedback removed", path, form{}, http.StatusOK)
		k.ask(ctx, http.MethodGet, "of removed feedback", path+"/image", form{}, http.StatusNotFound)
		delete(k.feedback, id)
		return
	}
}

// move moves the threshold.
func (k *keeper) move(ctx context.Context, r *rand.Rand) {
	to := k.threshold * (0.5 + r.Float64())
	f := form{"application/json", fmt.Appendf(nil, `{"threshold": %v, "note": "soak"}`, to)}
	status, body := k.ask(ctx, http.MethodPatch, "threshold moved", k.path(), f, http.StatusOK)
	var e registry.Entry
	if k.decoded(status, body, &e) {
		k.threshold, k.versions[e.SHA256] = to, k.scores
	}
}

// restore restores any version. No more than soakVersions are kept.
func (k *keeper) restore(ctx context.Context, r *rand.Rand) {
	status, body := k.ask(ctx, http.MethodGet, "versions listed", k.path()+"/versions", form{}, http.StatusOK)
	var got struct{ Versions []registry.Version }
	if !k.decoded(status, body, &got) {
		return
	}
	if n := len(got.Versions); n < 1 || n > soakVersions || got.Versions[0].Threshold != k.threshold || !got.Versions[0].Current {
		k.fault("%d versions of %s, expected at most %d and the threshold %v: %.300s", n, k.name, soakVersions, k.threshold, body)
		return
	}
	v := got.Versions[r.IntN(len(got.Versions))]
	if k.versions[v.SHA256] == nil {
		k.fault("%s has an unexpected version: %+v", k.name, v)
		return
	}
	if status, _ := k.ask(ctx, http.MethodPost, "version restored", k.path()+"/versions/"+v.SHA256+"/restore", form{}, http.StatusOK); status == http.StatusOK {
		k.threshold, k.scores = v.Threshold, k.versions[v.SHA256]
	}
}

// plot reads what a plot of the model needs, and begins the drift test anew.
func (k *keeper) plot(ctx context.Context, _ *rand.Rand) {
	status, body := k.ask(ctx, http.MethodGet, "scores", k.path()+"/scores", form{}, http.StatusOK)
	var got struct {
		Threshold float64
		Feedback  []json.RawMessage
	}
	if k.decoded(status, body, &got) && (got.Threshold != k.threshold || len(got.Feedback) != len(k.feedback)) {
		k.fault("scores of %s: threshold %v, %d images of the feedback; expected %v, %d", k.name, got.Threshold, len(got.Feedback), k.threshold, len(k.feedback))
	}
	k.ask(ctx, http.MethodPost, "drift reset", k.path()+"/drift/reset", form{}, http.StatusOK)
}

// calibrate calibrates the model. That waits for trainings: most steps do without.
func (k *keeper) calibrate(ctx context.Context, r *rand.Rand) {
	if r.IntN(4) > 0 {
		return
	}
	status, body := k.ask(ctx, http.MethodPost, "calibrated by name", k.path()+"/calibrate", formOf([2]any{"zipFile", k.few}), http.StatusOK)
	var got struct{ Model registry.Entry }
	if k.decoded(status, body, &got) {
		_, k.threshold = got.Model.Metadata.Measure()
		// The member scores are joined anew. A repeated calibration may be a known version.
		if k.scores = k.versions[got.Model.SHA256]; k.scores == nil {
			k.scores = map[int]float64{}
			k.versions[got.Model.SHA256] = k.scores
		}
	}
}

// namesOf returns the names of the stored models.
func (s *soak) namesOf(ctx context.Context) []string {
	_, body := s.ask(ctx, http.MethodGet, "models listed", "/models", form{}, http.StatusOK)
	var list struct{ Models []registry.Entry }
	if err := json.Unmarshal(body, &list); err != nil {
		s.fault("the models: %v: %.300s", err, body)
	}
	var names []string
	for _, e := range list.Models {
		names = append(names, e.Name)
	}
	slices.Sort(names)
	return names
}
