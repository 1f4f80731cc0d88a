"""What linear probes read from the tokens of `dino_nano`, beside those of the same network untrained.

python tests/probe_tokens.py [WEIGHTS]
"""

import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import jaccard_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from redfree.data.procedural.scenes import DOMAINS, draw
from redfree.models.catalogue import DINO_NANO_ARCHITECTURES
from redfree.models.dino_nano import build_dino_nano
from redfree.models.loading import load_tokens
from redfree.models.promptable import Encoding
from redfree.models.tokens import TokenModel

TRAIN, TEST = 120, 120


def probe(train, train_labels):
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(train, train_labels)


def digits(model):
    """Accuracy on scikit-learn's digits from class token and mean patch, 900 to learn and 897 to score."""
    data = load_digits()
    images = [np.repeat(np.kron(image * 255 / 16, np.ones((16, 16)))[..., None], 3, 2) for image in data.images]
    features = model.encode([image.astype(np.uint8) for image in images]).pooled().numpy()
    return probe(features[:900], data.target[:900]).score(features[900:], data.target[900:])


def foreground(model, domain):
    """IoU of the patches that mostly show an object, from each patch alone."""
    scenes = [
        draw(domain, split, index, 0, 128)
        for split, count in (("train", TRAIN), ("test", TEST))
        for index in range(count)
    ]
    patches = model.encode([scene.image for scene in scenes]).patches.numpy()
    shares = [scene.masks.any(0).reshape(8, 16, 8, 16).mean((1, 3)).ravel() > 0.5 for scene in scenes]
    learnt = probe(np.concatenate(patches[:TRAIN]), np.concatenate(shares[:TRAIN]))
    return jaccard_score(np.concatenate(shares[TRAIN:]), learnt.predict(np.concatenate(patches[TRAIN:])))


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    weights = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    untrained = TokenModel("untrained", build_dino_nano(DINO_NANO_ARCHITECTURES["dino_nano"]), "", Encoding(16))
    for name, model in (("trained", load_tokens("dino_nano", weights)), ("untrained", untrained)):
        found = {"digits accuracy": digits(model), **{f"{d} foreground IoU": foreground(model, d) for d in DOMAINS}}
        print(name, ", ".join(f"{key} {100 * value:.1f}" for key, value in found.items()))


if __name__ == "__main__":
    main()
