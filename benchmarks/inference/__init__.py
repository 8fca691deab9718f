"""Inference on the CPU: the optimized model against eager, frozen Inductor, ONNX Runtime and OpenVINO.

- :mod:`benchmarks.inference.models`: what is measured
- :mod:`benchmarks.inference.networks`: those of the models that no package has
- :mod:`benchmarks.inference.peers`: the original model on what others offer
- :mod:`benchmarks.inference.ours`: the optimized model
- :mod:`benchmarks.inference.measuring`: the contenders of one row, checked and timed in one process
- :mod:`benchmarks.inference.running`: all rows, a process for each model, within a limit of time
- :mod:`benchmarks.inference.ratios`: how many times faster
- :mod:`benchmarks.inference.report`: the table in Markdown
- :mod:`benchmarks.inference.chart`: the chart in SVG
"""
