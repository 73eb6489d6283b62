// Package detectability measures which synthetic anomalies a model finds, by their
// size and contrast: where nobody has defects to measure with, it tells what a
// verdict of "normal" is worth. The anomalies are painted by package synthetic on
// normal images that the model has not learnt from. They are not real defects,
// which may be found less or more often; what is written of a measurement says so.
//
// The package knows nothing of how images are judged: a Judge gives the score. Who
// judges many images in a pass of its own, as a training does by the folds of its
// cross-validation, takes a Plan instead of Measure: its Painter gives the samples,
// its Image the normal image that each was painted on, so that only what has not
// learnt from that image judges it, and Result makes shares of the scores.
package detectability
