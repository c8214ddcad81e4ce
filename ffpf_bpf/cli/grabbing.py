"""`ffpf grab` and `ffpf run`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Annotated

import typer

from ffpf_bpf.cli import options
from ffpf_bpf.cli.session import Session, announce
from ffpf_bpf.flow import Flow
from ffpf_bpf.graph.classes.bpf import Bpf
from ffpf_bpf.graph.classes.device import Device
from ffpf_bpf.graph.classes.grab import Grab
from ffpf_bpf.graph.expression import Expression, then


def grab(
    interface: Annotated[
        str, typer.Option("-i", "--interface", metavar="[NETNS/]IF[@HOOK][,monitor]", help="Where to grab.")
    ],
    filter_words: Annotated[
        list[str] | None, typer.Argument(metavar="[FILTER...]", help="A pcap filter, as in: tcp port 80")
    ] = None,
    write: options.Write = None,
    rotate_size: options.RotateSize = None,
    rotate_period: options.RotatePeriod = None,
    rotate_files: options.RotateFiles = None,
    compress: options.Compress = "",
    count: options.Count = None,
    snaplen: Annotated[
        int, typer.Option("-s", "--snaplen", min=0, max=65535, metavar="BYTES", help="Bytes of each packet; 0: all.")
    ] = 0,
    duration: options.Duration = None,
    buffer: options.Buffer = "4MiB",
    pace: options.Pace = "slow",
    policies: options.Policies = None,
    narrow: options.Narrow = False,
    audit: options.Audit = None,
    netns: options.Netns = None,
    follow: options.Follow = False,
    json: options.Json = False,
) -> None:
    """Grab from one interface with one pcap filter: print packets, or write them to a file."""
    stages: list[Expression] = [Device.parse(interface, name="", mbuf_bytes=0)]
    if filter_words:
        stages.append(Bpf(" ".join(filter_words)))
    stages.append(Grab(snaplen))
    rotation = options.rotation(write, rotate_size, rotate_period, rotate_files)
    printing = write is None and not json
    session = Session([], write, printing, count, duration, json, rotation=rotation, compress=compress)
    create = partial(Flow.create, policies=policies, audit=audit, pace=pace, netns=netns, follow=follow)
    _run([then(*stages)], session, create, options.buffer(buffer), narrow)


def run(
    expressions: options.Expressions,
    read: options.Read = None,
    write: options.Write = None,
    rotate_size: options.RotateSize = None,
    rotate_period: options.RotatePeriod = None,
    rotate_files: options.RotateFiles = None,
    compress: options.Compress = "",
    print_packets: Annotated[bool, typer.Option("-p", "--print", help="Print the packets that are grabbed.")] = False,
    count: options.Count = None,
    duration: options.Duration = None,
    buffer: options.Buffer = "4MiB",
    pace: options.Pace = "slow",
    policies: options.Policies = None,
    narrow: options.Narrow = False,
    audit: options.Audit = None,
    netns: options.Netns = None,
    follow: options.Follow = False,
    stats: Annotated[bool, typer.Option("--stats", help="Show the counters of every node, each second.")] = False,
    json: options.Json = False,
) -> None:
    """Run one or more flow expressions; their counters and loss ledgers at the end."""
    rotation = options.rotation(write, rotate_size, rotate_period, rotate_files)
    session = Session([], write, print_packets, count, duration, json, stats, rotation, compress)
    texts: list[Expression | str] = [options.expression_text(argument) for argument in expressions]
    create = partial(Flow.create, policies=policies, audit=audit, pace=pace, file=read, netns=netns, follow=follow)
    _run(texts, session, create, options.buffer(buffer), narrow and read is None)


def _run(
    expressions: list[Expression] | list[Expression | str],
    session: Session,
    create: Callable[..., Flow],
    buffer: options.BufferSize,
    narrow: bool,
) -> None:
    interfaces = 0
    with ExitStack() as stack:
        stack.callback(Flow.close_all, session.flows)
        for expression in expressions:
            flow = create(first_interface=interfaces)
            flow.populate(expression, **buffer, narrow=narrow)
            if said := options.narrowing(flow):
                print(f"ffpf: {flow.id}: {said}", file=sys.stderr)
            interfaces += 0 if flow.has_globs else len(flow.interfaces)
            session.flows.append(flow)
        for flow in session.flows:
            flow.instantiate()
        announce(session.flows, lambda text: print(f"ffpf: {text}", file=sys.stderr))
        code = session.run()
    raise typer.Exit(code)
