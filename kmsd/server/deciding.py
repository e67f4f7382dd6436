"""Everything that decides about requests, explains decisions, and is told to decide otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kmsd.access.decision import Authorizer
from kmsd.access.host import HostPolicy
from kmsd.api.operation import Operation
from kmsd.audit.writer import Trail
from kmsd.server.foundation import Foundation
from kmsd.service import host_policies, simulation
from kmsd.service.facts import Surroundings
from kmsd.service.host_policies import HostPolicies
from kmsd.service.key_lookup import KeyLookup
from kmsd.service.refusals import Refusals
from kmsd.service.simulation import Simulation
from kmsd.service.subjects import Subjects
from kmsd.service.table import bind
from kmsd.store.rows import SettingsRow


class Deciding:
    """The host policy in force, which is `host_policy` to begin with, and what is asked about it."""

    def __init__(
        self,
        foundation: Foundation,
        trail: Trail,
        settings: SettingsRow,
        lookup: KeyLookup,
        host_policy: HostPolicy,
    ) -> None:
        # Of the documents that the service began with.
        self.digest = host_policy.digest
        self.authorizer = Authorizer(host_policy)
        self.surroundings = Surroundings(settings.account, foundation.clock)
        self.refusals = Refusals()
        self.host_policies = HostPolicies(
            host_policy,
            path=foundation.host_policy,
            account=settings.account,
            directory=foundation.directory,
            authorizer=self.authorizer,
            trail=trail,
            logger=foundation.logger,
            sleep=foundation.sleep,
        )
        self._simulation = Simulation(
            authorizer=self.authorizer,
            lookup=lookup,
            refusals=self.refusals,
            subjects=Subjects(foundation.directory, foundation.administrators),
            directory=foundation.directory,
            surroundings=self.surroundings,
        )

    @property
    def handlers(self) -> dict[Operation[Any, Any], Callable[..., Any]]:
        """The handlers of what is asked about decisions."""
        return {
            **bind(simulation.HANDLERS, self._simulation),
            **bind(host_policies.HANDLERS, self.host_policies),
        }
