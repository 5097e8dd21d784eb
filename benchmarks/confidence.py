"""How sure scikit-learn's logistic regression is of a model's digits, of real ones, and of these as the model has them.

python benchmarks/confidence.py runs/.../last.ckpt ...
"""

import argparse

import torch
from measure import show
from sklearn.linear_model import LogisticRegression

import vcd
from vcd.data.digits import Digits


def values(images: torch.Tensor) -> torch.Tensor:
    """Of pixels, 0 to 16 as scikit-learn has them; a row an image."""
    return images.flatten(1).double() * (16 / 255)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--temperature", type=float, help="of the latents; that of the run if left out")
    given = parser.parse_args()
    train, held_out = Digits().load("train"), Digits().load("val")
    classifier = LogisticRegression(max_iter=2000).fit(values(train.images), train.labels)
    rows = []
    found = [("real, held out", held_out.images)]
    for path in given.checkpoints:
        model = vcd.load(path)
        found += [
            (path, model.sample(given.n, temperature=given.temperature)),
            ("its reconstructions of the held-out ones", model.decode(model.encode(held_out.images, temperature=1.0))),
        ]
    for name, images in found:
        sure = classifier.predict_proba(values(images)).max(1)
        rows.append(
            {"images": name, "n": len(images), "mean probability": sure.mean(), "above 0.9": (sure > 0.9).mean()}
        )
    show("confidence", rows)
