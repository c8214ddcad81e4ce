"""Batches as Arrow record batches: headers in columns, the packets' bytes as a binary view. Needs pyarrow.

They own their memory. Packets are copied once, as many bytes as the longest of the batch has, or, if that is more than
twice of what there is, each without a gap.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ffpf_bpf.capture.columns import Array, Headers, addresses, dissect
from ffpf_bpf.capture.ring import Batch
from ffpf_bpf.errors import CaptureError
from ffpf_bpf.graph.effect import NO_RESULT

INLINE_BYTES = 12  # what is not longer lies in the view itself (Arrow's columnar format, binary views)
UNITS = (
    ("length", "uint32"), ("captured", "uint32"), ("ethertype", "uint16"), ("vlan", "uint16"),
    ("ip_version", "uint8"), ("protocol", "uint8"), ("fragment", "uint8"), ("ttl", "uint8"), ("src", "string"),
    ("dst", "string"), ("src_port", "uint16"), ("dst_port", "uint16"), ("tcp_flags", "uint8"),
    ("payload_offset", "uint32"),
)  # fmt: skip


def pyarrow() -> Any:
    """The library. Raises CaptureError where it is missing."""
    try:
        import pyarrow as library  # noqa: PLC0415 - an extra
    except ImportError:
        raise CaptureError(
            "pyarrow is not installed", where="arrow", help="`pip install 'ffpf_bpf[arrow]'`, or `pip install pyarrow`"
        ) from None
    return library


def schema(data: bool = True) -> Any:
    """The schema of every batch, `data` with the packets' bytes."""
    pa = pyarrow()
    types = {"string": pa.string(), **{name: getattr(pa, name)() for name in ("uint8", "uint16", "uint32")}}
    fields = [("time", pa.timestamp("ns", "UTC")), ("interface", pa.string())]
    fields += [(name, types[kind]) for name, kind in UNITS]
    fields += [("result", pa.uint16())] + ([("data", pa.binary_view())] if data else [])
    return pa.schema(fields)


def record_batch(batch: Batch, interfaces: tuple[str, ...], first_interface: int, data: bool) -> Any:
    """One batch. What a packet does not have is null."""
    pa = pyarrow()
    records = batch.records
    headers = dissect(records)
    results = batch.results
    names, source, destination = addresses(records, headers)
    columns = [
        pa.array(batch.time_ns.astype(np.int64), pa.timestamp("ns", "UTC")),
        _named(list(interfaces), records["interface"].astype(np.int32) - first_interface),
        pa.array(np.ascontiguousarray(records["original"])),
        pa.array(np.ascontiguousarray(records["captured"])),
        *_header_columns(headers, records, _named(names, source), _named(names, destination)),
        pa.array(np.minimum(results, NO_RESULT - 1).astype(np.uint16), mask=results >= NO_RESULT),
    ]
    if data:
        columns.append(_views(records))
    return pa.record_batch(columns, schema(data))


def _header_columns(headers: Headers, records: Array, source: Any, destination: Any) -> list[Any]:
    pa = pyarrow()
    no_ip, no_ports = headers.version == 0, headers.ports == 0
    too_short = records["captured"] < 14
    return [
        pa.array(headers.ethertype, mask=too_short),
        pa.array(headers.vlan, mask=headers.vlan == 0xFFFF),
        *(pa.array(each, mask=no_ip) for each in (headers.version, headers.protocol, headers.fragment, headers.ttl)),
        source,
        destination,
        *(pa.array(each, mask=no_ports) for each in (headers.sport, headers.dport)),
        pa.array(headers.tcp_flags, mask=headers.tcp == 0),
        pa.array(headers.payload.astype(np.uint32)),
    ]


def _named(names: list[str], numbers: Array) -> Any:
    """Strings, from numbers of names; -1 is null."""
    pa = pyarrow()
    indices = pa.array(numbers, mask=numbers < 0)
    return pa.DictionaryArray.from_arrays(indices, pa.array(names, pa.string())).dictionary_decode()


def _views(records: Array) -> Any:
    """The captured bytes, as views of a copy of them."""
    pa = pyarrow()
    captured = np.minimum(records["captured"], records.dtype["data"].itemsize)
    width = int(captured.max(initial=0))
    rows = records["data"][:, :width]
    if 2 * int(captured.sum()) < rows.size:
        content = rows[np.arange(width) < captured[:, None]]
        starts = np.cumsum(captured, dtype=np.int64) - captured
    else:
        content = np.ascontiguousarray(rows)
        starts = np.arange(len(records), dtype=np.int64) * width
    views = np.zeros((len(records), 16), np.uint8)
    views[:, :4] = captured.astype("<u4")[:, None].view(np.uint8)
    head = min(width, INLINE_BYTES)
    in_view = np.where(captured > INLINE_BYTES, 4, captured)  # a prefix of longer ones
    views[:, 4 : 4 + head] = np.where(np.arange(head) < in_view[:, None], rows[:, :head], 0)
    longer = captured > INLINE_BYTES
    views[longer, 12:] = starts[longer].astype("<u4")[:, None].view(np.uint8)
    return pa.Array.from_buffers(pa.binary_view(), len(records), [None, pa.py_buffer(views), pa.py_buffer(content)])
