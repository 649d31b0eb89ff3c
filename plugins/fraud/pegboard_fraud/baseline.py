"""The honest baseline: XGBoost, tuned, on the same features and rows as the model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import xgboost
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from pegboard.records import Array, Baseline
from pegboard_fraud.data import FraudDataset
from pegboard_fraud.features import FEATURE_NAMES
from pegboard_fraud.settings import FraudSettings
