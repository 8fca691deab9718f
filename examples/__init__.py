"""Runnable stories, each a script that the tests run, and networks to try things on (:mod:`examples.models`)."""
