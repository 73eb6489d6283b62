// Package detectability measures which synthetic anomalies a model detects, by size and
// contrast, as a substitute for a test on real defects. Package synthetic generates the
// anomalies on normal images that the model was not trained on. Real defects may be
// detected less or more often; the written results state that (see Caveat).
//
// The package must not depend on how images are scored: a ScoreFunc returns the score.
// Measure scores one image at a time. A caller that scores many images in its own pass,
// such as a training with the folds of a cross-validation, uses a Plan instead:
// Plan.Painter returns the samples, Plan.Image the normal image that a sample is derived
// from, so that a model that was not trained on it can score it, and Plan.Result
// computes the shares from the scores.
package detectability
