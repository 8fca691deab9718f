"""Programs kept between processes, so that a second ``optimize`` of the same model need not capture and rewrite.

- :mod:`rewrite.cache.keys`: what a program depends on, as a key; what no key can see is not cached
- :mod:`rewrite.cache.fingerprint` and :mod:`rewrite.cache.code`: values and code, as the key has them; with
  :mod:`rewrite.cache.payload`, what objects hold, and :mod:`rewrite.cache.versioned`, what goes by a version
- :mod:`rewrite.cache.sources`: the source files behind an entry, which have to be as they were
- :mod:`rewrite.cache.store`: the directory

An entry holds no weights. What comes from it is checked against the model as a fresh capture is, which is the second
line: a call shows only what its values reach, so it is the key that has to tell models apart.
"""

from rewrite.cache.store import ProgramCache, default_cache

__all__ = ["ProgramCache", "default_cache"]
