// Package evaluation measures how well a model separates defective from normal images:
// it scores a data set with one folder for each kind of image, and computes detection
// metrics and a report from the scores. Training and serving must not be here.
package evaluation
