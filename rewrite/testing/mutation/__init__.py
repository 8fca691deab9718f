"""Rules against small errors: does the evidence tell a rule from the rule without one of its preconditions?

A mutant is a rule with one small change: a comparison turned, a constant off by one, a term dropped, a reason for
refusal taken away. A test suite that passes with it does not need the changed place: a test is missing, or the code is
superfluous, or the change changes nothing (DeMillo, Lipton and Sayward, Hints on Test Data Selection, 1978). Mutants
are made in memory, in forked processes; files are never written. Reported beside is whether verification at run time
rejects what a mutant builds. Needs pytest and a system that forks.

    from rewrite.testing.mutation import examine, mutants_of

    for told in examine(mutants_of(["mypackage.my_rule"]), ["tests/test_my_rule.py"]):
        print(told)

- ``edits``: how one place is changed
- ``mutants``: all changes of a module, by name
- ``swapping``: changed code in place of a function's own
- ``worker``: the process that runs the tests, and ``warming`` what it does once
- ``examining``: mutants against tests
- ``owners``: which rules use which code
- ``record``: what is kept of it, and a table
"""

from __future__ import annotations

from rewrite.testing.mutation.edits import PRECONDITION
from rewrite.testing.mutation.examining import MutationError, examine, mutants_of, source_of
from rewrite.testing.mutation.mutants import Mutant, Source
from rewrite.testing.mutation.outcome import Baseline, Fate, Outcome
from rewrite.testing.mutation.owners import Definition, digest, owners
from rewrite.testing.mutation.record import Row, table

__all__ = [
    "examine", "mutants_of", "source_of", "Mutant", "Source", "Baseline", "Outcome", "Fate", "PRECONDITION", "owners",
    "digest", "Definition", "Row", "table", "MutationError",
]  # fmt: skip
