"""The structure of calls and results as JSON, built and read here: torch's own reader imports what a file names.

A leaf is ``null``; a container is ``[kind, context, children]``, where the kind is the name under which torch has the
class, and the context what tells containers of one kind apart: ``["builtins.dict", ["a", "b"], [null, null]]``.
"""

from __future__ import annotations

import json
from collections import OrderedDict, defaultdict, deque, namedtuple
from typing import Any

from rewrite import compat
from rewrite.artifact.literals import decode, encode
from rewrite.artifact.names import DAMAGED
from rewrite.errors import ArtifactError

_FACTORIES = {"": None, **{kind.__name__: kind for kind in (bool, dict, float, int, list, set, str, tuple)}}
"""What a missing item of a ``defaultdict`` may be made with."""


def tree_data(spec: compat.TreeSpec) -> Any:
    """A structure as JSON.

    Raises:
        ArtifactError: it has containers or keys of a kind that has no name outside this process.
    """
    try:
        data = json.loads(json.dumps(_data(spec)))
        same = repr(tree_of(data)) == repr(spec)  # where keys that are equal and not alike differ
        reason = "its keys are neither text nor numbers"
    except ArtifactError as error:
        same, reason = False, str(error).partition(";")[0]
    if not same:
        raise ArtifactError(
            f"the call has arguments or results in {spec}, which cannot be saved ({reason}); register the class with a "
            "serialized_type_name (torch.export.register_dataclass, torch.utils._pytree), or use dicts and tuples"
        )
    return data


def tree_of(data: Any) -> compat.TreeSpec:
    """The structure again; nothing is imported for it. What is malformed raises anything, see ``refusing``.

    Raises:
        ArtifactError: it has a container that is not registered here, or contents that do not fit it.
    """
    if data is None:
        return compat.leaf_spec()
    name, context, children = data
    kind = _registered(name)
    given = decode(context, _no_node)
    if kind is namedtuple:
        given = _registered(given)
    elif kind is defaultdict:
        factory, keys = given
        given = [_FACTORIES[factory], keys]
    spec = compat.TreeSpec(kind, given, [tree_of(child) for child in children])
    if not compat.is_tree_class(kind) or not _fits(kind, given, spec.num_children):
        raise ArtifactError(
            f"a {name} of the call has {spec.num_children} items and the context {context!r}; {DAMAGED}"
        )
    return spec


def _data(spec: compat.TreeSpec) -> Any:
    if spec.is_leaf():
        return None
    context = spec.context
    if spec.type is namedtuple:
        context = _name_of(context)
    elif spec.type is defaultdict:
        factory, keys = context
        names = [name for name, known in _FACTORIES.items() if known is factory]
        if not names:
            raise ArtifactError(f"a defaultdict is made with {factory!r}; use a dict")
        context = [names[0], keys]
    return [_name_of(spec.type), encode(context), [_data(child) for child in spec.children()]]


def _fits(kind: Any, context: Any, items: int) -> bool:
    """Whether a container of this kind can have so many items; classes of others are for their own code to judge."""
    if kind in (tuple, list):
        return context is None
    if kind in (dict, OrderedDict, defaultdict):
        keys = context[1] if kind is defaultdict else context
        return isinstance(keys, list) and len(keys) == len(set(keys)) == items
    if kind is deque:
        return context is None or (type(context) is int and context >= items)
    return kind is not namedtuple or len(getattr(context, "_fields", ())) == items > 0


def _name_of(kind: Any) -> str:
    name = compat.registered_name(kind)
    if name is None:
        raise ArtifactError(f"{kind!r} is not registered under a name; use dicts and tuples")
    return name


def _registered(name: str) -> Any:
    found = compat.registered_class(name)
    if found is None:
        raise ArtifactError(
            f"the call has arguments or results of a class that is not known here ('{name}'); import the module that "
            "registers it first"
        )
    return found


def _no_node(name: str) -> Any:
    raise ArtifactError(f"the structure of the call holds the node '{name}'; {DAMAGED}")
