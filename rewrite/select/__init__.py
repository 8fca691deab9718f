"""The choice among algorithms and layouts, made for a whole program at once.

- :mod:`rewrite.select.worlds`: how values lie in memory, channels first and channels last
- :mod:`rewrite.select.rehearsal`: parts of a program made ready to be timed
- :mod:`rewrite.select.sites`: operators that have alternatives, and what each takes
- :mod:`rewrite.select.energy`: costs of layouts over a whole program, and their minimum by a minimum cut
- :mod:`rewrite.select.deciding`: the costs of one program, and what follows at each site
- :mod:`rewrite.select.selection`: the strategy of a driver that makes what is chosen
- :mod:`rewrite.select.tuning`: for which lowering, on which device, in how much time
- :mod:`rewrite.select.trial`: the selected program against the one before
"""

from rewrite.select.selected import Selected
from rewrite.select.selection import Selection
from rewrite.select.trial import Trial, compare
from rewrite.select.tuning import BUDGET, Tune, Tuning

__all__ = ["BUDGET", "Selected", "Selection", "Trial", "Tune", "Tuning", "compare"]
