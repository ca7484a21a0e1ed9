#!/usr/bin/env python3
"""Writes strategy.json: what the server's rules make of some mean updates, by the papers' formulas.

FedAvgM: Hsu et al., 2019 (arXiv 1909.06335). FedAdam, FedYogi: Reddi et al., 2021 (arXiv 2003.00295), algorithm 2,
with moments that begin at 0. `python3 strategy.py > strategy.json`
"""

import json
import math
import random
import struct


def single(value):
    """The nearest 32-bit float: updates are of that type."""
    return struct.unpack("f", struct.pack("f", value))[0]


def sign(value):
    return (value > 0) - (value < 0)


def run(rule, rate, beta1, beta2, tau, means):
    n = len(means[0])
    w, m, v = [0.0] * n, [0.0] * n, [0.0] * n
    models = []
    for mean in means:
        for i, u in enumerate(mean):
            if rule == "FedAvg":
                w[i] += u
            elif rule == "FedAvgM":
                v[i] = beta1 * v[i] + u
                w[i] += rate * v[i]
            else:
                m[i] = beta1 * m[i] + (1 - beta1) * u
                if rule == "FedAdam":
                    v[i] = beta2 * v[i] + (1 - beta2) * u * u
                else:
                    v[i] -= (1 - beta2) * u * u * sign(v[i] - u * u)
                w[i] += rate * m[i] / (math.sqrt(v[i]) + tau)
        models.append(list(w))
    return models


def main():
    random.seed(13)
    means = [[single(random.gauss(0, 0.02) * (0 if i == 7 else 1)) for i in range(8)] for _ in range(6)]
    rules = [("FedAvg", 1.0, 0.0, 0.0, 0.0), ("FedAvgM", 0.7, 0.9, 0.0, 0.0),
             ("FedAdam", 0.01, 0.9, 0.99, 1e-3), ("FedYogi", 0.01, 0.9, 0.99, 1e-3)]
    names = ("rule", "rate", "beta1", "beta2", "tau")
    print(json.dumps([{**dict(zip(names, r)), "means": means, "models": run(*r, means)} for r in rules]))


main()
