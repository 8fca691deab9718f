"""Triton kernels: what is planned and predicted, and what is measured where there is a GPU."""
