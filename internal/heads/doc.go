// Package heads trains defect heads: small convolutional networks on a backbone's
// features that mark synthetic anomalies, as the discriminative networks of DRAEM
// (Zavrtanik et al., 2021) and SuperSimpleNet (Rolih et al., 2024) do. How much a
// head's logit counts beside other members of the anomaly score is decided elsewhere.
package heads
