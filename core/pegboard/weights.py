"""Trained weights as safetensors: names and numbers, nothing that runs when it is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from pegboard.errors import CheckpointError, PluginError
from pegboard.files import atomic_path
from pegboard.runs import Run


def save_weights(state: Mapping[str, Any], path: Path) -> None:
    """Write a model's state, atomically.

    Args:
        state: Whole tensors by the model's names, as `model.state_dict()` gives them.
        path: The file.

    Raises:
        PluginError: The model keeps something in its state that is no tensor.
        PegboardError: The disk is full.
    """
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise PluginError(
                f"the model's state '{name}' is a {type(value).__name__} and not a tensor",
                where="build_model",
                remedy="keep it in a buffer",
            )
    # Copies, because safetensors refuses tensors that share memory, as tied weights do.
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a model with weights; every name and shape must fit.

    Raises:
        CheckpointError: The file is missing or damaged, or does not fit the model.
    """
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the weights cannot be read: {error}", where=str(path), remedy="train again"
        ) from error
    misfit = _misfit(state, model.state_dict())
    if misfit:
        raise CheckpointError(
            f"the weights do not fit the model: {misfit}",
            where=str(path),
            remedy="build the model as it was trained, or train again",
        )
    model.load_state_dict(state)


def _misfit(state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> str | None:
    """Describe the first name or shape that differs."""
    for name, tensor in expected.items():
        if name not in state:
            return f"'{name}' is not in the file"
        if state[name].shape != tensor.shape:
            return (
                f"'{name}' has the shape {tuple(state[name].shape)} in the file and "
                f"{tuple(tensor.shape)} in the model"
            )
    unknown = next((name for name in state if name not in expected), None)
    return None if unknown is None else f"'{unknown}' is not in the model"


def load_trained(run: Run) -> nn.Module:
    """Build a run's model and fill it with the trained weights; it is in evaluation mode."""
    project = run.project
    model: nn.Module = project.board.hook.build_model(settings=project.settings, train_data=None)
    load_weights(model, run.weights_file)
    return model.eval()
