"""A host without a policy directory: root may grab everything, and nobody else anything."""

from __future__ import annotations

from ffpf_bpf.authorise.decision import Decision, shown
from ffpf_bpf.authorise.subject import Subject
from ffpf_bpf.graph.definition import Definition
from ffpf_bpf.graph.graph import check


def decide_without_policies(definition: Definition, subject: Subject) -> Decision:
    """The decision where there are no policies. Never raises: what goes wrong in here rejects."""
    try:
        check(definition.graph)
        digest = definition.digest
    except Exception as error:  # fails closed, whatever it is
        return Decision(False, (f"the decision failed: {type(error).__name__}: {shown(str(error))}",), (), "")
    if subject.uid == 0:
        return Decision(True, ("no policy directory: root may grab everything",), (), digest)
    return Decision(False, (f"no policy allows user {shown(subject.user)}: no policy directory",), (), digest)
