"""The device that programs run on: what it is, how fast it is, and what was measured on it.

- :mod:`rewrite.target.machine`: what tells one machine from another
- :mod:`rewrite.target.measurements`: measurements that outlast the process
- :mod:`rewrite.target.target`: the two together
"""

from rewrite.target.measurements import Measurements
from rewrite.target.target import Measured, Speeds, Target

__all__ = ["Measured", "Measurements", "Speeds", "Target"]
