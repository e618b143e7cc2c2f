"""Trains the example's model and writes `model.joblib` and `golden.npz` beside this file."""

from pathlib import Path

import joblib
import numpy as np
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Train on every other flower, keep a few of the others as golden inputs."""
    measures, species = load_iris(return_X_y=True)
    measures = measures.astype(np.float32)
    model = RandomForestClassifier(n_estimators=20, random_state=1).fit(measures[::2], species[::2])
    joblib.dump(model, HERE / "model.joblib")
    np.savez(HERE / "golden.npz", measures=measures[1::16])
    print(f"right on {model.score(measures[1::2], species[1::2]):.1%} of the flowers it has not seen")


if __name__ == "__main__":
    main()
