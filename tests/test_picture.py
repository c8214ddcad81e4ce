"""Pictures of graphs: a box for each node and each join that is read, labels on the edges that select, nothing on top of
anything."""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree

import pytest

from ffpf_bpf.graph import picture
from ffpf_bpf.graph.builder import build
from ffpf_bpf.graph.parser import parse
from ffpf_bpf.graph.sharing import merge

SVG = "{http://www.w3.org/2000/svg}"
SELECT = (
    "(device,eth0) -> (classify,dport) -53-> (grab) | -80,443-> ((head,5) -> (grab)) "
    "| -1000..2000,3000,4000,5000-> (packetcount) | -*-> ((bpf,udp) -> (bytecount)) | -7-> !(bpf,tcp)"
)


@dataclass
class Drawn:
    """What a picture shows: boxes by title (left, top, right, bottom), labels of edges with their place, how many edges."""

    boxes: dict[str, tuple[float, float, float, float]]
    labels: list[tuple[str, float, float]]
    edges: int


def drawn(*written: str) -> Drawn:
    graphs = [build(parse(each)) for each in written]
    merged = merge(graphs)
    root = ElementTree.fromstring(
        picture.svg(graphs[0]) if len(graphs) == 1 else picture.svg(merged.graph, merged.users)
    )
    texts = root.findall(f"{SVG}text")
    titles = [text.text or "" for text in texts if text.get("font-weight")]
    boxes = {}
    for title, rect in zip(titles, root.findall(f"{SVG}rect[@rx]"), strict=True):
        x, y, width, height = (float(rect.get(name, "")) for name in ("x", "y", "width", "height"))
        boxes[title] = (x, y, x + width, y + height)
    labels = [(e.text or "", float(e.get("x", "")), float(e.get("y", ""))) for e in texts if e.get("text-anchor")]
    return Drawn(boxes, labels, len(root.findall(f"{SVG}path")))


def test_joins_that_nothing_reads_are_not_drawn() -> None:
    ends = drawn("(device,eth0) -> ((bpf,udp) -> (grab)) | ((bpf,tcp) -> (packetcount))")
    assert list(ends.boxes) == ["device1", "bpf1", "grab1", "bpf2", "packetcount1"]
    assert ends.edges == 4
    read = drawn("(device,eth0) -> (bpf,udp) | (bpf,tcp) -> (grab)")
    assert list(read.boxes) == ["device1", "bpf1", "bpf2", "any1", "grab1"]
    assert read.edges == 5
    # Of one branch nothing goes on: that is no join of two.
    one = drawn("(device,eth0) -> ((bpf,udp) -> (grab)) | (bpf,tcp) -> (packetcount)")
    assert "any1" not in one.boxes


def test_cases_are_labels_of_edges() -> None:
    shown = drawn(SELECT)
    assert not any(title.startswith(("case", "any")) for title in shown.boxes)
    assert [label for label, _, _ in shown.labels] == [
        "53", "80,443", "1000..2000,3000,4000,...", "*", "7", "7",
    ]  # fmt: skip
    assert shown.labels[0][1:] == (shown.boxes["grab1"][0] - 10, sum(shown.boxes["grab1"][1::2]) / 2 - 6)


@pytest.mark.parametrize(
    "written", [SELECT, SELECT.replace("(classify,dport)", "(classify as a_rather_long_name,length)")]
)
def test_nothing_lies_on_top_of_anything(written: str) -> None:
    shown = drawn(written)
    boxes = list(shown.boxes.values())
    for number, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[number + 1 :]:
            assert right < other[0] or other[2] < left or bottom < other[1] or other[3] < top
        for label, x, y in shown.labels:
            # At 7.3 a character, as wide as monospaced 12 pixels are.
            assert right < x - 7.3 * len(label) or x < left or bottom < y - 12 or y < top, label


def test_how_many_flows_share_a_node_is_told() -> None:
    texts = [f"(device,eth0) -> (sampler,2) -> (bpf,udp) -> (bytecount as n{number})" for number in range(3)]
    texts.append("(device,eth0) -> (sampler,2) -> (grab)")
    shown = drawn(*texts)
    assert list(shown.boxes)[:3] == [
        "device1  [shared by 4 flows: 1, 2, 3, 4]",
        "sampler1  [shared by 4 flows: 1, 2, 3, 4]",
        "bpf1  [shared by 3 flows: 1, 2, 3]",
    ]
    assert "grab1  [flow 4]" in shown.boxes
    assert "shared by 3 flows: 1, 2, 3\n  bpf1 " in picture.merged_text(merge([build(parse(each)) for each in texts]))


def test_merged_text_names_the_case_that_a_step_reads() -> None:
    lines = picture.merged_text(merge([build(parse(SELECT))])).splitlines()
    assert "  grab1         (grab)  <- classify1 -53->" in lines
    assert "  head1         (head,5)  <- classify1 -80,443->" in lines
    assert not any(line.startswith(("  case", "  any")) for line in lines)
