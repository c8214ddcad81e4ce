"""Authorisation: `decide(definition, policies, subject)` says yes or no to a complete flow definition, with reasons.

Pure: only `read_policies` reads files, and only `subject_of` and `current_subject` ask the user database. It fails
closed: a policy that cannot be read denies, no rule for the subject denies, and so does an error in here.
"""

from ffpf_bpf.authorise.decision import Decision, Kind, Obligation, Result
from ffpf_bpf.authorise.directory import read_policies
from ffpf_bpf.authorise.judgement import decide
from ffpf_bpf.authorise.policy import Limits, Order, Policies, PolicyError, Rule
from ffpf_bpf.authorise.subject import Subject, current_subject, subject_of

__all__ = [
    "Decision",
    "Kind",
    "Limits",
    "Obligation",
    "Order",
    "Policies",
    "PolicyError",
    "Result",
    "Rule",
    "Subject",
    "current_subject",
    "decide",
    "read_policies",
    "subject_of",
]
