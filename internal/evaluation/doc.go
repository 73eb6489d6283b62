// Package evaluation measures how well a model tells defects from normal images:
// it scores a data set whose images are sorted into folders, and makes figures and
// a report of the scores. It trains nothing and serves nothing.
package evaluation
