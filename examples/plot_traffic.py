"""A capture explored cell by cell, as in a notebook: packets as Arrow columns, plots as PNG. A file needs no root.

examples/plot_traffic.py capture.pcapng
examples/plot_traffic.py eth0 --seconds 10 --filter "tcp or udp"

Needs `pip install 'ffpf_bpf[plots]'`: matplotlib, pandas, pyarrow.
"""

# %% What to look at

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import pandas as pd

import ffpf_bpf
from ffpf_bpf import Flow, bpf, device, grab

mpl.use("Agg")  # into files; leave it out in a notebook
from matplotlib import pyplot

parser = argparse.ArgumentParser(description="Plot traffic of a capture file or an interface.")
parser.add_argument("source", help="a pcap or pcapng file, or an interface")
parser.add_argument("--filter", default="")
parser.add_argument("--seconds", type=float, default=5.0)
parser.add_argument("--into", type=Path, default=Path())
asked = parser.parse_args()

# %% Packets -> one DataFrame, a row for each packet, headers in columns

if Path(asked.source).is_file():
    with ffpf_bpf.open(asked.source) as file:
        packets = file.dataframe()
else:
    with Flow.create() as flow:
        flow.populate(device(asked.source) >> bpf(asked.filter) >> grab(snaplen=96)).instantiate().activate()
        packets = flow.dataframe(duration_s=asked.seconds)
print(f"{len(packets):,} packets, {packets['length'].sum():,} bytes")
protocols = packets["protocol"].map({1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6"}).fillna("other")

# %% How much came when

figure, axes = pyplot.subplots(figsize=(9, 4))
span_s = max((packets["time"].max() - packets["time"].min()).total_seconds(), 1e-3) if len(packets) else 1.0
bin_ms = max(1, round(span_s * 1000 / 100))
rates = packets.groupby([pd.Grouper(key="time", freq=f"{bin_ms}ms"), protocols])["length"].sum().unstack(fill_value=0)
for name, lengths in rates.items():
    axes.plot(lengths.index, lengths * 8 / bin_ms / 1000, label=name)
axes.set(xlabel="time", ylabel="Mbit/s", title=f"Traffic, every {bin_ms} ms")
axes.legend()
figure.savefig(asked.into / "rate.png")

# %% How long packets are

figure, axes = pyplot.subplots(figsize=(9, 4))
axes.hist(packets["length"], bins=50)
axes.set(xlabel="bytes", ylabel="packets", title="Lengths", yscale="log")
figure.savefig(asked.into / "lengths.png")

# %% Who sends most

talkers = packets.groupby("src")["length"].sum().nlargest(10)
figure, axes = pyplot.subplots(figsize=(9, 4), layout="constrained")
axes.barh(talkers.index[::-1], talkers.to_numpy()[::-1])
axes.set(xlabel="bytes", title="Sources")
figure.savefig(asked.into / "sources.png")
print(f"plots in {asked.into.resolve()}: rate.png, lengths.png, sources.png")
