"""What the code of a model can reach: each value decides over the key, or no key is made."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rewrite.cache.fingerprint import DoubtError
from rewrite.cache.keys import identity_of

NET = """
import argparse, collections, dataclasses, decimal, enum, fractions, functools, math, operator, os, threading, types
import numpy as np
import torch, reached_settings
import torch.nn.functional as F
from torch import nn
{prelude}
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        {init}
    def forward(self, x):
        {line}
        return self.layer(x).relu().clamp(max=limit)
"""

Place = tuple[str, str, str]

SEEN: dict[str, Place] = {
    "a number": ("A = L", "", "limit = A"),
    "namespace": ("A = argparse.Namespace(limit=L)", "", "limit = A.limit"),
    "simple namespace": ("A = types.SimpleNamespace(limit=L)", "", "limit = A.limit"),
    "ordered dict": ("A = collections.OrderedDict(limit=L)", "", "limit = A['limit']"),
    "default dict": ("A = collections.defaultdict(float, limit=L)", "", "limit = A['limit']"),
    "deque": ("A = collections.deque([L])", "", "limit = A[0]"),
    "counter": ("A = collections.Counter(limit=int(L))", "", "limit = A['limit']"),
    "subclass of dict": (
        "class C(dict):\n    __getattr__ = dict.__getitem__\nA = C(limit=L)", "", "limit = A.limit"),
    "subclass of list": ("class C(list):\n    pass\nA = C([L])", "", "limit = A[0]"),
    "subclass of float": ("class C(float):\n    pass\nA = C(L)", "", "limit = A"),
    "slots": ("class C:\n    __slots__ = ('limit',)\nA = C()\nA.limit = L", "", "limit = A.limit"),
    "inherited slots": (
        "class B:\n    __slots__ = ('limit',)\nclass C(B):\n    pass\nA = C()\nA.limit = L", "", "limit = A.limit"),
    "dataclass": ("@dataclasses.dataclass\nclass C:\n    limit: float\nA = C(L)", "", "limit = A.limit"),
    "dataclass with slots": (
        "@dataclasses.dataclass(slots=True)\nclass C:\n    limit: float\nA = C(L)", "", "limit = A.limit"),
    "named tuple": ("class C(collections.namedtuple('C', 'limit')):\n    pass\nA = C(L)", "", "limit = A.limit"),
    "bound method": (
        "class C:\n    def __init__(self):\n        self.a = L\n    def get(self):\n        return self.a\nA = C().get",
        "", "limit = A()"),
    "method of a builtin": ("A = {'limit': L}.get", "", "limit = A('limit')"),
    "large dict": ("A = {**{str(i): 0.0 for i in range(300)}, 'limit': L}", "", "limit = A['limit']"),
    "large list": ("A = [0.0] * 300 + [L]", "", "limit = A[-1]"),
    "deep set": ("A = {(1, (2, (3, (4, L))))}", "", "limit = next(iter(A))[1][1][1][1]"),
    "array": ("A = np.array([[1.0, 2.0], [L, L]])", "", "limit = float(A[1, 0])"),
    "array with gaps": ("A = np.array([[1.0, 2.0, 3.0], [L, L, L]]).T[::2]", "", "limit = float(A[1, 1])"),
    "number of an array": ("A = np.float64(L)", "", "limit = A"),
    "decimal": ("A = decimal.Decimal(str(L))", "", "limit = float(A)"),
    "fraction": ("A = fractions.Fraction(int(L))", "", "limit = float(A)"),
    "enumeration": ("class A(enum.Enum):\n    LIMIT = L", "", "limit = A.LIMIT.value"),
    "enumeration of text": (
        "class A(str, enum.Enum):\n    LIMIT = str(L)", "", "limit = float(A.LIMIT.value)"),
    "tensor": ("A = torch.tensor(L)", "", "limit = A"),
    "tensor in a list": ("A = [torch.tensor(L)]", "", "limit = A[0]"),
    "attribute of a class": ("class C:\n    class I:\n        limit = L", "", "limit = C.I.limit"),
    "metaclass": (
        "class B(type):\n    limit = L\nclass C(metaclass=B):\n    pass", "", "limit = C.limit"),
    "attribute of a function": ("def A():\n    pass\nA.limit = L", "", "limit = A.limit"),
    "default": ("def A(limit=L):\n    return limit", "", "limit = A()"),
    "keyword default": ("def A(*, limit=L):\n    return limit", "", "limit = A()"),
    "closure": ("def B(l):\n    def g():\n        return l\n    return g\nA = B(L)", "", "limit = A()"),
    "closure in a comprehension": (
        "def B(l):\n    def g():\n        return [l for _ in range(2)]\n    return g\nA = B(L)", "", "limit = A()[0]"),
    "partial": ("A = functools.partial(max, L)", "", "limit = A(0.0)"),
    "cached function": ("B = L\n@functools.lru_cache\ndef A():\n    return B", "", "limit = A()"),
    "decorated function": (
        "B = L\n@torch.no_grad()\ndef A():\n    return B", "", "limit = A()"),
    "wrapped function": (
        "B = L\ndef w(f):\n @functools.wraps(f)\n def g():\n  return f()\n return g\n@w\ndef A():\n return B", "",
        "limit = A()"),
    "lambda in a dict": ("B = L\nA = {'a': lambda: B}", "", "limit = A['a']()"),
    "of a module": ("reached_settings.LIMIT = L", "", "limit = reached_settings.LIMIT"),
    "of torch": ("torch.LIMIT = L", "", "limit = torch.LIMIT"),
    "of the functions of torch": ("F.LIMIT = L", "", "limit = F.LIMIT"),
    "name of an attribute": ("class A:\n    pass\nA.limit = L", "", "limit = getattr(A, 'limit')"),
    "computed name": ("class A:\n    pass\nA.limit = L", "", "limit = getattr(A, 'li' + str('mit'))"),
    "attribute": ("", "self.a = types.SimpleNamespace(limit=L)", "limit = self.a.limit"),
    "lambda of the model": ("B = L", "self.a = lambda: B", "limit = self.a()"),
    "tensor of the model": ("", "self.a = torch.tensor(L)", "limit = self.a.item()"),
    "tensor in a list of the model": ("", "self.a = [torch.tensor(L)]", "limit = self.a[0]"),
    "tensor in a dict of the model": ("", "self.a = {'b': torch.tensor(L)}", "limit = self.a['b']"),
    "layer in a list": (
        "", "self.a = [nn.Linear(1, 1, bias=False)]\n        nn.init.constant_(self.a[0].weight, L)",
        "limit = self.a[0].weight.sum()"),
    "attribute of a weight": ("", "self.layer.weight.limit = L", "limit = self.layer.weight.limit"),
    "base class": (
        "class B(nn.Linear):\n    def more(self):\n        return L\nclass C(B):\n    pass", "self.a = C(1, 1)",
        "limit = self.a.more()"),
    "method that torch calls": (
        "class B:\n    def _conv_forward(self, x, w, b):\n        return x * L\nclass C(B, nn.Conv2d):\n    pass",
        "self.a = C(1, 1, 1)", "limit = self.a(x[None]).max()"),
    "method that Python calls": (
        "class C:\n    def __add__(self, other):\n        return other + L\nA = C()", "", "limit = A + 0"),
    "method that an object makes of a function": (
        "class C:\n    __call__ = functools.partial(max, L)\nA = C()", "", "limit = A()"),
    "constructor": (
        "class C:\n    def __init__(self):\n        self.limit = L", "", "limit = C().limit"),
    "constructor of the class of an object": (
        "class C:\n    def __init__(self, limit=0.0):\n        self.limit = limit or B\nB = 0.0\nA = C()\nB = L", "",
        "limit = type(A)().limit"),
    "property": ("class C:\n    @property\n    def limit(self):\n        return L\nA = C()", "", "limit = A.limit"),
    "cached property": (
        "class C:\n    @functools.cached_property\n    def limit(self):\n        return L\nA = C()", "",
        "limit = A.limit"),
    "static method": ("class C:\n    @staticmethod\n    def f():\n        return L", "", "limit = C.f()"),
    "descriptor": (
        "class D:\n    def __get__(self, *_):\n        return L\nclass C:\n    limit = D()\nA = C()", "",
        "limit = A.limit"),
    "in a nested function": ("A = L", "", "limit = (lambda: A)()"),
}  # fmt: skip

DOUBTED: dict[str, tuple[Place, str]] = {
    "environment": (("os.environ['REACHED_LIMIT'] = str(L)", "", "limit = float(os.environ['REACHED_LIMIT'])"),
                    r"os\.environ in reached\.Net\.forward is of 'os\._Environ'"),
    "getenv": (("", "", "limit = float(os.getenv('A', '1'))"), r"is 'os\.getenv', which may read more than"),
    "file": (("", "", "limit = float(open('a').read())"), "is 'open', which reaches what cannot be seen"),
    "file of tensors": (("", "", "limit = torch.load('a')"), r"'torch\.serialization\.load', which reads more"),
    "globals": (("A = L", "", "limit = globals()['A']"), "is 'globals'"),
    "eval": (("A = L", "", "limit = eval('A')"), "is 'eval'"),
    "import": (("", "", "from reached_settings import LIMIT as limit"), "imports 'reached_settings' when it runs"),
    "imported environment": (("", "", "import os\n        limit = float(os.environ.get('A', 1))"), "os.environ"),
    "called import": (("", "", "limit = __import__('reached_settings').LIMIT"), "is '__import__'"),
    "thread-local": (("A = threading.local()\nA.limit = L", "", "limit = A.limit"), "_thread._local"),
    "dispatch by type": (
        ("B = L\n@functools.singledispatch\ndef A(x):\n    return B", "", "limit = A(1)"), "WeakKeyDictionary"),
    "generator": (("A = iter([L])", "", "limit = next(A)"), "list_iterator"),
    "module by another name": (("A = reached_settings", "", "m = A\n        limit = m.LIMIT"), "builtins.module"),
    "module of the model": (("", "self.a = reached_settings", "limit = self.a.LIMIT"), "builtins.module"),
    "used cache": (
        ("@functools.lru_cache\ndef A():\n    return 1.0\nA()", "", "limit = A()"), "has results in its cache"),
    "other operators": (
        ("", "", "limit = torch.ops.reached.limit(x)"), r"the operator 'reached\.limit', whose kernels cannot be seen"),
    "frames": (("A = L", "", "limit = self.forward.__func__.__globals__['A']"), "reads '__globals__'"),
    "compiled code": (("", "", "limit = float(np.prod(x.shape))"), r"np\.prod"),
    "set of objects": (("A = {type, int}", "", "limit = len(A)"), "builtins.set"),
    "random numbers": (("import random", "", "limit = random.random()"), "Random"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A module of settings, and nothing that stays."""
    settings = types.ModuleType("reached_settings")
    settings.__file__ = str(tmp_path / "reached_settings.py")
    settings.LIMIT = 1.0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "reached_settings", settings)
    monkeypatch.setenv("REACHED_LIMIT", "1")
    library = torch.library.Library("reached", "FRAGMENT")
    library.define("limit(Tensor x) -> Tensor")
    yield
    for space in (torch, nn.functional):
        vars(space).pop("LIMIT", None)
    library._destroy()


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Place, float], nn.Module]:
    """Makes a network of a module of its own, in which the variable ``L`` is a number."""

    def make(place: Place, limit: float) -> nn.Module:
        prelude, init, line = place
        source = tmp_path / "reached.py"
        source.write_text(NET.format(prelude=prelude, init=init, line=line))
        module = types.ModuleType("reached")
        module.__file__, module.L = str(source), limit  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "reached", module)
        torch.manual_seed(0)
        exec(compile(source.read_text(), str(source), "exec"), vars(module))
        return module.Net().eval()  # type: ignore[no-any-return]

    return make


@pytest.mark.parametrize("name", SEEN)
def test_what_is_seen(name: str, net: Any) -> None:
    first, again, other = (identity_of(net(SEEN[name], limit)) for limit in (6.0, 6.0, 10.0))
    assert first == again
    assert first != other


@pytest.mark.parametrize("name", DOUBTED)
def test_what_is_doubted(name: str, net: Any) -> None:
    place, words = DOUBTED[name]
    with pytest.raises(DoubtError, match=words):
        identity_of(net(place, 6.0))


UNREACHED: dict[str, Place] = {
    "another global": ("A = L\nB = 1.0", "", "limit = B"),
    "another method": (
        "class C:\n    def f(self):\n        return 1.0\n    def g(self):\n        return L\nA = C()", "",
        "limit = A.f()"),
    "constructor of an object that exists": (
        "B = open\nclass C:\n    def __init__(self):\n        B\n    def f(self):\n        return 1.0\nA = C()", "",
        "limit = A.f()"),
    "log": ("import logging\nA = logging.getLogger('a')", "", "A.info('a')\n        limit = 1.0"),
    "name of the class": (
        "class C(nn.Identity):\n def __init__(self):\n  super().__init__()\n  open\n"  # noqa: ISC004
        " def extra_repr(self):\n  return self.__class__.__name__", "self.a = C()", "limit = self.a(1.0)"),
    "imports of torch": (
        "", "", "import torch.nn.functional as G; from math import sqrt; limit = G.relu(x).max() * sqrt(2)"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNREACHED)
def test_what_is_not_reached_makes_no_doubt(name: str, net: Any) -> None:
    assert identity_of(net(UNREACHED[name], 6.0)) == identity_of(net(UNREACHED[name], 10.0))


def double(x: Any, *args: Any, **kwargs: Any) -> Any:
    return 2 * x


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("torch.nn.functional.linear", double),
        ("torch.nn.functional.linear", nn.functional.bilinear),
        ("torch.nn.Linear.forward", double),
        ("torch.nn.Linear.more", 3.0),
        ("torch.Tensor.relu", double),
        ("torch.Tensor.relu", torch.Tensor.abs),
    ],
    ids=["function", "function of torch", "method", "attribute", "tensor", "tensor of torch"],
)
def test_torch_itself_replaced(place: str, value: Any, net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = net(("", "", "limit = 1.0"), 6.0)
    before = identity_of(model)
    monkeypatch.setattr(place, value, raising=False)
    assert identity_of(model) != before
    monkeypatch.undo()
    assert identity_of(model) == before


def test_modules_that_hide_those_of_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, net: Any) -> None:
    """A file of one's own by the name of one of Python's is one's own."""
    fake = types.ModuleType("statistics")
    fake.__file__ = str(tmp_path / "statistics.py")
    monkeypatch.setitem(sys.modules, "statistics", fake)
    keys = set()
    for factor in (2, 3):
        exec(compile(f"def mean(x):\n    return {factor} * x\n", fake.__file__, "exec"), vars(fake))
        keys.add(identity_of(net(("from statistics import mean as A", "", "limit = A(1.0)"), 6.0)))
    assert len(keys) == 2


def test_weights_count_without_their_values(net: Any) -> None:
    place = ("", "self.a = [self.layer]", "limit = self.a[0].bias.max()")
    first, second = net(place, 6.0), net(place, 6.0)
    with torch.no_grad():
        second.layer.bias.add_(1)
    assert identity_of(first) == identity_of(second)
