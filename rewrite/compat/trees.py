"""Trees of arguments and results, and the operators and classes that have names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.fx.graph import CodeGen, _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree
from torch.utils._pytree import TreeSpec, tree_flatten

if TYPE_CHECKING:
    from collections.abc import Sequence


def leaf_spec() -> TreeSpec:
    """The structure of a value that is no container."""
    return tree_flatten(0)[1]


def registered_class(name: str) -> Any:
    """The class that torch has for trees under a name for files, or None; nothing is imported for it."""
    return None if name == _pytree.NO_SERIALIZED_TYPE_NAME_FOUND else _pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE.get(name)


def registered_name(kind: Any) -> str | None:
    """The name of such a class for files, None for one that has none."""
    found = _pytree.SUPPORTED_SERIALIZED_TYPES.get(kind)
    name = None if found is None else found.serialized_type_name
    return None if name == _pytree.NO_SERIALIZED_TYPE_NAME_FOUND else name


def is_tree_class(kind: Any) -> bool:
    """Whether torch takes values of a class apart."""
    return kind in _pytree.SUPPORTED_NODES


def pytree_codegen(argument_names: Sequence[str], in_spec: TreeSpec, out_spec: TreeSpec | None) -> CodeGen:
    """Code generation that gives a flat graph the user's own signature: nested inputs, keywords, nested outputs."""
    return _PyTreeCodeGen(_PyTreeInfo(list(argument_names), in_spec, out_spec))


def dispatched(library: str, name: str, overload: str) -> torch._ops.OpOverload | None:
    """An operator of the dispatcher, or None: ``torch.ops`` has those of TorchScript too, which print and save."""
    if not torch._C._dispatch_has_kernel(f"{library}::{name}{'' if overload == 'default' else f'.{overload}'}"):
        return None
    found = getattr(getattr(getattr(torch.ops, library), name), overload)
    return found if isinstance(found, torch._ops.OpOverload) else None
