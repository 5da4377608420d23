"""FIRE, Frobenius-Isometry Reinitialization: restore a network's plasticity before it meets new data.

import fire
report = fire.fire_(model)  # in place; then train on the new data with a fresh optimiser
"""

from fire import metrics
from fire.during import During
from fire.metrics import Activation
from fire.injection import InjectedHead, PlasticityInjection
from fire.matrices import WeightMatrix, weight_matrices
from fire.methods import (
    METHODS,
    Fire,
    FullReset,
    Method,
    NoReset,
    Rescale,
    Scope,
    ShrinkPerturb,
    build,
    fire_,
    register,
)
from fire.polar import polar
from fire.report import MatrixReport, Recorder, ResetReport

__all__ = [
    "METHODS",
    "Activation",
    "During",
    "Fire",
    "FullReset",
    "InjectedHead",
    "MatrixReport",
    "Method",
    "NoReset",
    "PlasticityInjection",
    "Recorder",
    "Rescale",
    "ResetReport",
    "Scope",
    "ShrinkPerturb",
    "WeightMatrix",
    "build",
    "fire_",
    "metrics",
    "polar",
    "register",
    "weight_matrices",
]
