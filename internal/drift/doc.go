// Package drift tests, verdict by verdict, whether the anomaly scores of a model are still
// those of normal images as in its calibration, or tend to be higher. The test may be looked
// at after each verdict: if nothing has changed, the probability that it ever raises an
// alarm is at most Level. Models, images, files and clocks must not be here.
//
// A verdict's conformal p-value is its rank from above among the calibration scores and the
// scores of all earlier verdicts, at random within equal ranks (Vovk, Nouretdinov and
// Gammerman, "Testing exchangeability on-line", ICML 2003). If all of these scores are
// exchangeable, the p-values are independent and uniform for any distribution of scores and
// any number of calibration images. This does not hold for ranks among the calibration
// scores alone: the same few calibration scores would be compared with thousands of
// verdicts, and their own deviation from the distribution would raise an alarm.
//
// A gambler with the capital 1 bets against uniform p-values. It bets on small ones,
// εp^(ε−1), and so on scores that became higher; nothing is bet on lower scores. The capital
// is divided between several ε, and between all verdicts at which the change may begin, so
// that many unchanged verdicts do not use it up. It is a martingale under exchangeability,
// and by Ville's inequality the probability that it ever reaches 1/Level is at most Level.
package drift
