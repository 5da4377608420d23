"""FIRE, Frobenius-Isometry Reinitialization: restore a network's plasticity before it meets new data.

import fire
report = fire.fire_(model)  # in place
fire.reset_state(optimizer, report)  # then train on the new data
"""

from fire import metrics
from fire.during import During
from fire.injection import InjectedHead, PlasticityInjection
from fire.l2_init import L2Init
from fire.matrices import WeightMatrix, weight_matrices
from fire.methods import (
    METHODS,
    Fire,
    FullReset,
    Method,
    NoReset,
    Rescale,
    ShrinkPerturb,
    TrainingMethod,
    build,
    fire_,
    register,
)
from fire.metrics import Activation
from fire.optimizers import reset_state
from fire.polar import polar
from fire.redo import ReDo
from fire.report import MatrixReport, Recorder, ResetReport
from fire.scope import Scope
from fire.units import UnitLayer, unit_layers

__all__ = [
    "METHODS", "Activation", "During", "Fire", "FullReset", "InjectedHead", "L2Init", "MatrixReport", "Method",
    "NoReset", "PlasticityInjection", "ReDo", "Recorder", "Rescale", "ResetReport", "Scope", "ShrinkPerturb",
    "TrainingMethod", "UnitLayer", "WeightMatrix", "build", "fire_", "metrics", "polar", "register",
    "reset_state", "unit_layers", "weight_matrices",
]  # fmt: skip
