"""Tests in virtual machines: the kernel tests on a matrix of kernels, by QEMU, without image or network.

`make test-vm`, or `python -m tests.vm` for one kernel and one test. The host's file system is the guest's, under an
overlay in memory; the cache of kernels and `build/vm`, where results go, are all that is written on the host.
"""
