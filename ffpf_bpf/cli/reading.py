"""`ffpf read`: the packets of a capture file."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ffpf_bpf.capture.files import CaptureFile
from ffpf_bpf.capture.ring import Batch
from ffpf_bpf.cli import options, report
from ffpf_bpf.compiler.native import NativeFilter
from ffpf_bpf.compiler.pcap import compile_filter


def read(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A pcap or pcapng file, or - for a pipe.")],
    filter_words: Annotated[
        list[str] | None, typer.Argument(metavar="[FILTER...]", help="A pcap filter, as in: tcp port 80")
    ] = None,
    count: options.Count = None,
) -> None:
    """Print the packets of a capture file, those that one pcap filter passes. Needs no root."""
    chosen = NativeFilter(compile_filter(" ".join(filter_words))) if filter_words else None
    printed = 0
    with CaptureFile(file) as packets:
        try:
            for batch in packets.batches():
                records = batch.records if chosen is None else batch.records[chosen.passes(batch.records)]
                if count is not None:
                    records = records[: count - printed]
                if not report.print_packets(Batch(records, 0, 0).packets(packets.interfaces)):
                    raise typer.Exit
                printed += len(records)
                if printed == count:
                    break
        finally:
            sys.stdout.flush()
            print(f"{printed:,} of {packets.packets_read:,} packets printed", file=sys.stderr)
            if packets.cut_short:
                print(f"ffpf: {packets.where}: ends within a packet: it was cut short", file=sys.stderr)
