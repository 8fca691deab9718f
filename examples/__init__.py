"""Runnable stories; each is a script and is run by the tests."""
