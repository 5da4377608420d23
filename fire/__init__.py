"""FIRE, Frobenius-Isometry Reinitialization: restore a network's plasticity before it meets new data.

import fire
report = fire.fire_(model)  # in place
fire.reset_state(optimizer, report)  # then train on the new data
"""

from . import metrics
from .batch_norm import refresh_batch_norm
from .cbp import ContinualBackprop
from .dash import Dash
from .during import During
from .injection import InjectedHead, PlasticityInjection
from .l2_init import L2Init
from .matrices import WeightMatrix, weight_matrices
from .methods import METHODS, Method, NoReset, TrainingMethod, build, register
from .metrics import Activation
from .muon import Muon, MuonWithAdam
from .optimizers import reset_state
from .parseval import Parseval
from .polar import polar
from .redo import ReDo
from .report import MatrixReport, Recorder, ResetReport
from .resets import Fire, FullReset, Rescale, RescaleConvolution, ShrinkPerturb, fire_
from .scope import Scope
from .snr import SelfNormalizedResets
from .units import UnitLayer, unit_layers

__all__ = [
    "METHODS",
    "Activation",
    "ContinualBackprop",
    "Dash",
    "During",
    "Fire",
    "FullReset",
    "InjectedHead",
    "L2Init",
    "MatrixReport",
    "Method",
    "Muon",
    "MuonWithAdam",
    "NoReset",
    "Parseval",
    "PlasticityInjection",
    "ReDo",
    "Recorder",
    "Rescale",
    "RescaleConvolution",
    "ResetReport",
    "Scope",
    "SelfNormalizedResets",
    "ShrinkPerturb",
    "TrainingMethod",
    "UnitLayer",
    "WeightMatrix",
    "build",
    "fire_",
    "metrics",
    "polar",
    "refresh_batch_norm",
    "register",
    "reset_state",
    "unit_layers",
    "weight_matrices",
]  # fmt: skip
