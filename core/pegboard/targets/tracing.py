"""Tracing: from a deployable to a graph, once for every target that starts from one."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch.export import Dim, ExportedProgram

from pegboard.errors import PegboardError, PluginError
from pegboard.records import ExportRequest, Signature, TensorSpec
from pegboard.signatures import describe
from pegboard.targets.support import first_line, quiet

_SPECIALIZED = re.compile(r"marked (\w+) as dynamic but your code specialized it .*?\((\d+)\)")
_SOURCE = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")
"""Where a graph remembers the paths of the machine that traced it."""


def example_of(signature: Signature) -> dict[str, torch.Tensor]:
    """Return synthesised inputs as tensors, every dynamic axis 2 long."""
    return {name: torch.as_tensor(array) for name, array in signature.example().items()}


def dynamic_axes(spec: TensorSpec) -> dict[int, str]:
    """Return a tensor's dynamic axes: `{0: "batch"}`."""
    return {index: axis for index, axis in enumerate(spec.shape) if isinstance(axis, str)}


def trace(request: ExportRequest) -> ExportedProgram:
    """Trace a deployable with the signature's dynamic axes; nothing of this machine stays in it.

    Raises:
        PluginError: The deployable does not keep the signature.
        PegboardError: It cannot be traced; the sentence says what to change.
    """
    deployable, signature = request.deployable.eval(), request.signature
    inputs = example_of(signature)
    _check_outputs(deployable, inputs, signature)
    named = {axis: Dim(axis, min=1) for axis in signature.dynamic_axes()}
    shapes = {
        spec.name: {index: named[axis] for index, axis in dynamic_axes(spec).items()}
        for spec in signature.inputs
    }
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(
                deployable, (), inputs, dynamic_shapes=shapes, strict=False
            )
    # torch.export raises whatever the deployable's own code and torch's tracer raise.
    except Exception as error:
        raise _explained(error, deployable) from error
    return _without_source(program)


def _check_outputs(
    deployable: torch.nn.Module, inputs: Mapping[str, torch.Tensor], signature: Signature
) -> None:
    name = type(deployable).__name__
    try:
        with torch.no_grad():
            outputs = deployable(**inputs)
    # Running the plugin's own code: anything may come.
    except Exception as error:
        raise PluginError(
            f"the deployable fails on an example of its signature: {first_line(error)}",
            where=name,
            remedy="make 'signature' and 'build_deployable' agree",
        ) from error
    if not isinstance(outputs, Mapping):
        raise PluginError(
            f"the deployable returns a {type(outputs).__name__} and not a dict",
            where=name,
            remedy="return the outputs by the signature's names",
        )
    for spec in signature.outputs:
        _check_output(outputs, spec, name)


def _check_output(outputs: Mapping[str, torch.Tensor], spec: TensorSpec, where: str) -> None:
    if spec.name not in outputs:
        raise PluginError(
            f"the deployable returns no output '{spec.name}'",
            where=where,
            remedy=f"it returns {', '.join(outputs)}; make it keep its signature",
        )
    shape = tuple(outputs[spec.name].shape)
    dtype = str(outputs[spec.name].dtype).removeprefix("torch.")
    fits = len(shape) == len(spec.shape) and all(
        isinstance(wanted, str) or wanted == length
        for wanted, length in zip(spec.shape, shape, strict=True)
    )
    if dtype != spec.dtype or not fits:
        raise PluginError(
            f"the output '{spec.name}' is {dtype} {list(shape)} and not {describe(spec)}",
            where=where,
            remedy="make 'signature' and 'build_deployable' agree",
        )


def _without_source(program: ExportedProgram) -> ExportedProgram:
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                for key in _SOURCE:
                    node.meta.pop(key, None)
    return program


def _explained(error: Exception, deployable: torch.nn.Module) -> PegboardError:
    where = type(deployable).__name__
    text = str(error)
    specialized = _SPECIALIZED.search(text)
    if specialized:
        axis, length = specialized.groups()
        return PegboardError(
            f"the deployable cannot be traced: its code fixes the axis '{axis}' to {length}",
            where=where,
            remedy=f"take '{axis}' from the tensor's shape, for example 'x.flatten(1)' for "
            f"'x.view({length}, -1)'",
        )
    if "data-dependent" in text or "Data dependent" in text:
        return PegboardError(
            "the deployable cannot be traced: its code branches on a tensor's values",
            where=where,
            remedy="write the branch with 'torch.where'",
        )
    return PegboardError(
        f"the deployable cannot be traced: {first_line(error)}",
        where=where,
        remedy="'pegboard --debug' shows the line",
    )
