"""The two arithmetics in which a bundle's matrix products can run."""

from enum import StrEnum


class Precision(StrEnum):
    FP32 = "fp32"
    INT8 = "int8"
