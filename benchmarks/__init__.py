"""Measurements of Lighterman, each against a floor taken on the same machine at the same time.

A benchmark is a module of this package with

* ``SUMMARY``: one line about what it measures,
* ``run(options)``: takes a mapping of option names to texts and returns an object that JSON can hold,
* ``OPTIONS``, if it takes any: a mapping of option names to default texts.

``python -m benchmarks`` lists them; ``python -m benchmarks NAME --json`` runs one. Modules without ``SUMMARY`` are
helpers.
"""
