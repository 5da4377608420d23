"""The paper's theorems on a trained network."""
