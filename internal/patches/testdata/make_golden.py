"""Distances of feature maps to normal ones, computed with full decompositions, for internal/patches.

    python make_golden.py > golden.json      # needs NumPy
"""
import json

import numpy as np

C, P, N, FOLDS, RANK, MOST = 6, 3, 14, 3, 2, 5
r = np.random.default_rng(1)
mixing = r.normal(size=(C, C)) * np.linspace(2, 0.2, C)
means = 2 * r.normal(size=(P * P, C))


def draw(n, scale):
    """n maps, by image, place and channel, of few digits."""
    z = r.normal(size=(n, P * P, C)) + r.normal(size=(n, 1, C))
    return np.round(means + scale * z @ mixing.T, 3).astype(np.float32).astype(np.float64)


def gaussians(x, queries):
    n = len(x)
    d = x - x.mean(0)
    a = np.einsum("kpi,kpj->ij", d, d) / (P * P * (n - 1))
    a += np.diag(0.01 * np.diag(a) + 1e-6 * np.trace(a) / C)
    w = np.linalg.inv(np.linalg.cholesky(a))
    y, q = d @ w.T, (queries - x.mean(0)) @ w.T
    s = 0.2
    out = np.zeros(q.shape[:2])
    for p in range(P * P):
        values, vectors = np.linalg.eigh(y[:, p].T @ y[:, p] / (n - 1))
        values = (1 - s) * values + s
        values[: C - RANK] = values[: C - RANK].mean()
        out[:, p] = ((q[:, p] @ vectors) ** 2 / values).sum(1)
    return out


def pooled(x, queries):
    f, q = x.mean(1), queries.mean(1)
    cov = np.cov(f.T)
    variance = np.trace(cov) / C
    cov = 0.7 * cov + 0.3 * np.diag(np.diag(cov)) + 1e-6 * variance * np.eye(C)
    q = q - f.mean(0)
    return np.einsum("ki,ij,kj->k", q, np.linalg.inv(cov), q)


def neighbours(x, queries):
    f, q = x.mean(1), queries.mean(1)
    values, vectors = np.linalg.eigh(np.cov(f.T))
    w = vectors / np.sqrt(values + (0.1 + 1e-6) * values.mean())
    q, f = (q - f.mean(0)) @ w, (f - f.mean(0)) @ w
    bank = [np.argmin((f**2).sum(1))]
    while len(bank) < MOST:
        bank.append(np.argmax(((f[:, None] - f[bank]) ** 2).sum(2).min(1)))
    return ((q[:, None] - f[bank]) ** 2).sum(2).min(1)


images, queries = draw(N, 1), draw(3, 1.5)
fits = []
for fold in range(FOLDS + 1):
    x = images[[k for k in range(N) if fold == FOLDS or k % FOLDS != fold]]
    fits.append({
        "gaussian": gaussians(x, queries).tolist(),
        "pooled": pooled(x, queries).tolist(),
        "neighbours": neighbours(x, queries).tolist(),
    })


def channels_first(maps):
    return [[float(f"{v:.3f}") for v in m.T.ravel()] for m in maps]


print(json.dumps({
    "channels": C, "side": P, "folds": FOLDS, "rank": RANK, "most": MOST,
    "images": channels_first(images), "queries": channels_first(queries), "fits": fits,
}, indent=None, separators=(", ", ": ")).replace('"images"', '\n"images"').replace('"queries"', '\n"queries"').replace('"fits"', '\n"fits"').replace('], [', '],\n ['))
