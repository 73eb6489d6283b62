// Package feedback stores images of which a person has said whether they are normal, and
// counts how often a model was wrong about them. It computes no scores: models, decoding and
// HTTP must not be here.
package feedback
