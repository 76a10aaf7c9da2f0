"""Every target there is, by name."""

from tests.fuzz.target import Target
from tests.fuzz.targets import documents, gateway, git_bundle, reports, wire

TARGETS: dict[str, Target] = {
    target.name: target for family in (documents, reports, wire, gateway, git_bundle) for target in family.TARGETS
}
