// Package detectability measures which synthetic anomalies a model finds, by their
// size and contrast: where nobody has defects to measure with, it tells what a
// verdict of "normal" is worth. The anomalies are painted by package synthetic on
// normal images that the model has not learnt from. They are not real defects,
// which may be found less or more often; what is written of a measurement says so.
//
// The package knows nothing of how images are judged: a Judge gives the score.
package detectability
