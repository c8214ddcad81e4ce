"""Benchmarks against the goals of the project: `python -m benchmarks.NAME [--quick]`, as root, from the checkout.

They build private network namespaces, leave nothing behind, and print tables: nothing here is imported by ffpf_bpf.
"""
