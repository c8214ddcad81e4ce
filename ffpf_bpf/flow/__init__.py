"""The life cycle of flows."""

from ffpf_bpf.flow.flow import Flow, State
from ffpf_bpf.flow.grabber import planned_parts
from ffpf_bpf.flow.statistics import Ledger, NodeStatistics, Statistics

__all__ = ["Flow", "Ledger", "NodeStatistics", "State", "Statistics", "planned_parts"]
