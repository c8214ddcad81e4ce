"""What a policy says of two flows of alice, a student: nothing is loaded, so no root is needed.

examples/policy_check.py eth1 --policies /etc/ffpf
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ffpf_bpf import Expression, Flow, Subject, bpf, device, grab, sampler, snap

POLICIES = Path(__file__).resolve().parents[1] / "policies"
# Between hosts of the lab, from a port that is no mail server's: what the rules allow and do not forbid.
LAB_WEB = "ip and src net 10.20.0.0/16 and dst net 10.20.0.0/16 and tcp dst port 443 and tcp src portrange 1024-65535"
# `subject_of("alice")` would ask the user database instead.
ALICE = Subject("alice", frozenset({"students"}), 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask a policy directory about two flows.")
    # The rule for students is about eth* and veth*; loopback is refused.
    parser.add_argument("interface", nargs="?", default="eth0")
    parser.add_argument("--policies", type=Path, default=POLICIES)
    asked = parser.parse_args()

    decide(device(asked.interface) >> bpf("udp") >> grab(), asked.policies)
    decide(device(asked.interface) >> sampler(10) >> bpf(LAB_WEB) >> snap() >> grab(snaplen=96), asked.policies)


def decide(expression: Expression, policies: Path) -> None:
    """Print the decision on one flow. A decision is never a bare yes or no: it has its reasons."""
    flow = Flow.create(policies=policies, subject=ALICE).populate(expression)
    print(f"{flow.definition.text}\n{flow.authorise().text()}\n")


if __name__ == "__main__":
    main()
