// Package heads trains defect heads: small convolutional networks on a backbone's
// features that segment synthetic anomalies, like the discriminative networks of DRAEM
// (Zavrtanik et al., 2021) and SuperSimpleNet (Rolih et al., 2024). The weight of the
// heads in the anomaly score does not belong here; see internal/decision.
package heads
