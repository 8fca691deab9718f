"""The private or young torch names that this project stands on, one place for all.

Everything else imports them from here, so that a new torch release is a change to this package and its tests alone.
Supported: torch 2.11 and newer.
"""

from torch._dispatch.python import enable_python_dispatcher as python_dispatcher
from torch._prims_common import suggest_memory_format
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.fx.graph import CodeGen
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from rewrite.compat.decompositions import decomposed
from rewrite.compat.dynamo import (
    dynamo_requests,
    dynamo_source,
    float_symbol,
    functional_graph,
    graph_number,
    is_static_by_default,
    specialize_floats,
)
from rewrite.compat.exports import (
    argument_names,
    data_dependent_errors,
    decided_buffers,
    grad_region,
    is_nested_graph,
    known_values,
    signature_trees,
    unlift,
    watch_autograd_functions,
    without_partial_graphs,
)
from rewrite.compat.inductor import (
    cpp_compiler,
    inductor_compile,
    inductor_compile_traced,
    inductor_mode,
    inductor_options,
)
from rewrite.compat.packed import has_mkl, pack_convolution, pack_linear, packed_convolution, packed_linear
from rewrite.compat.recording import (
    interpret,
    is_jit_tracing,
    is_recording,
    is_stand_in,
    unrecorded,
    whole_stacks,
)
from rewrite.compat.surroundings import (
    are_modes_active,
    autocast,
    device_kinds,
    has_device,
    has_global_hooks,
    is_any_autocast,
    is_dynamo_watching,
    is_fsdp,
    is_transforming,
    on_optimizer_step,
    uncompiled,
    without_autocast,
)
from rewrite.compat.trees import (
    dispatched,
    is_tree_class,
    leaf_spec,
    pytree_codegen,
    registered_class,
    registered_name,
)
from rewrite.compat.values import (
    fake_mode_of,
    has_unbacked_size,
    hint,
    is_unbacked,
    symbolic_mode,
    with_symbols,
    without_fresh_symbols,
)

__all__ = [
    "CodeGen",
    "FakeTensor",
    "FakeTensorMode",
    "TorchDispatchMode",
    "TreeSpec",
    "are_modes_active",
    "argument_names",
    "autocast",
    "cpp_compiler",
    "data_dependent_errors",
    "decided_buffers",
    "decomposed",
    "device_kinds",
    "dispatched",
    "dynamo_requests",
    "dynamo_source",
    "fake_mode_of",
    "float_symbol",
    "functional_graph",
    "grad_region",
    "graph_number",
    "has_device",
    "has_global_hooks",
    "has_mkl",
    "has_unbacked_size",
    "hint",
    "inductor_compile",
    "inductor_compile_traced",
    "inductor_mode",
    "inductor_options",
    "interpret",
    "is_any_autocast",
    "is_dynamo_watching",
    "is_fsdp",
    "is_jit_tracing",
    "is_nested_graph",
    "is_recording",
    "is_stand_in",
    "is_static_by_default",
    "is_transforming",
    "is_tree_class",
    "is_unbacked",
    "known_values",
    "leaf_spec",
    "on_optimizer_step",
    "pack_convolution",
    "pack_linear",
    "packed_convolution",
    "packed_linear",
    "python_dispatcher",
    "pytree_codegen",
    "registered_class",
    "registered_name",
    "signature_trees",
    "specialize_floats",
    "statically_known_true",
    "suggest_memory_format",
    "symbolic_mode",
    "tree_flatten",
    "tree_map",
    "tree_unflatten",
    "uncompiled",
    "unlift",
    "unrecorded",
    "watch_autograd_functions",
    "whole_stacks",
    "with_symbols",
    "without_autocast",
    "without_fresh_symbols",
    "without_partial_graphs",
]
