// Package monitor watches the verdicts of stored models: it counts them, keeps the last
// anomaly scores, and tests whether the scores became higher than those of the model's
// calibration. A Set has the monitors of a process; its Store keeps them in the registry's
// folder, or joins them with those of the other nodes of a cluster. Images, HTTP and the
// computation of scores must not be here.
package monitor
