"""Programs in files: graphs as JSON, tensors as safetensors, in a zip archive that checks itself. Nothing is pickled.

- :mod:`rewrite.artifact.content`: what a file holds
- :mod:`rewrite.artifact.container`: the archive
- :mod:`rewrite.artifact.boundary`: what a file that is damaged ends in
- :mod:`rewrite.artifact.writing` and :mod:`rewrite.artifact.reading`: graphs
- :mod:`rewrite.artifact.values`, :mod:`~rewrite.artifact.operators`, :mod:`~rewrite.artifact.literals` and
  :mod:`~rewrite.artifact.trees`: their parts
- :mod:`rewrite.artifact.tensors`: tensors
"""

from rewrite.artifact.boundary import refusing
from rewrite.artifact.container import packed, unpacked
from rewrite.artifact.content import Artifact, StoredProgram, stored_graphs
from rewrite.artifact.reading import graphs_of
from rewrite.artifact.writing import graphs_data

__all__ = [
    "Artifact", "StoredProgram", "graphs_data", "graphs_of", "packed", "refusing", "stored_graphs", "unpacked",
]  # fmt: skip
