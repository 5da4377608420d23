"""The data sets of the vision domain: each is a file here, a line below and `configs/vision/data/<name>.yaml`."""

from experiments.vision.data import DataSet
from experiments.vision.datasets.cifar10 import CIFAR10

DATA_SETS: dict[str, DataSet] = {"cifar10": CIFAR10}
