"""Scores of normal and defective images and scikit-learn's figures of them, for internal/evaluation.

    python make_metrics.py > metrics.json      # needs scikit-learn
"""
import json
import random

from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

cases = []
for seed, good, bad, apart, digits in [(1, 20, 10, 1.0, 6), (2, 75, 40, 0.3, 6), (3, 30, 30, 0.5, 1), (4, 5, 3, 9.0, 6), (5, 8, 9, -1.0, 2)]:
    r = random.Random(seed)
    g = [round(r.gauss(0, 1), digits) for _ in range(good)]
    b = [round(r.gauss(apart, 1), digits) for _ in range(bad)]
    truth, scores = [0] * good + [1] * bad, g + b
    precision, recall, _ = precision_recall_curve(truth, scores)
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    cases.append({
        "good": g, "bad": b, "auroc": roc_auc_score(truth, scores), "average_precision": average_precision_score(truth, scores),
        "best_f1": max(2 * p * q / (p + q) if p + q else 0 for p, q in zip(precision, recall)),
        "hits_at_10_percent": max(t for f, t in zip(fpr, tpr) if f <= 0.1),
    })
print(json.dumps(cases, indent=1))
