"""How each kind of process is confined, from what the deployment says about where things are."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import msgspec

import kmsd
from kmsd.envelope.control import WORKER_ENTRY
from kmsd.envelope.worker import run_worker
from kmsd.hsm.pkcs11 import JOB_ENTRY, run_job
from kmsd.identity.answering import (
    CGROUPS_ENTRY,
    LOOKUPS_ENTRY,
    PROGRAMS_ENTRY,
    run_cgroups,
    run_names,
    run_programs,
)
from kmsd.memory.mapping import MemoryKind
from kmsd.processes.confinement import Confinement, ConfinementError, Finding, Protection, State, missing
from kmsd.processes.landlock import Reach
from kmsd.processes.profiles import (
    cgroup_calls,
    daemon_calls,
    job_calls,
    lookup_calls,
    program_calls,
    recovery_calls,
    worker_calls,
    zygote_calls,
)
from kmsd.processes.selfcheck import check_entry, reporting
from kmsd.processes.spawning import Entry
from kmsd.recovery.job import RECOVERY_ENTRY, run_recovery_job
from kmsd.server.deployment import Deployment

# The children in the order of the report; the zygote's own state is what a child that restricts nothing further sees.
CHILDREN = ("zygote", JOB_ENTRY, WORKER_ENTRY, LOOKUPS_ENTRY, PROGRAMS_ENTRY, CGROUPS_ENTRY, RECOVERY_ENTRY)
# A worker has its control socket, the key page, the client's two files, and what Python opens.
_WORKER_DESCRIPTORS = 64
# A recovery job has its channel, two pages, the three standard ones, and what the restrictions themselves open.
_RECOVERY_DESCRIPTORS = 16
# Shared libraries, and what the loader reads to find them.
_LIBRARIES = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/etc/ld.so.cache")
_DEVICES = ("/dev/random", "/dev/urandom")
# Libraries open these for both.
_WRITTEN_DEVICES = ("/dev/null", "/dev/zero")
# Where the name services of a host keep what they know, and listen. Not /var/lib as a whole: the store is there.
_NAMES_READ = (
    "/etc",
    "/usr/share/zoneinfo",
    "/var/lib/sss",
    "/var/lib/extrausers",
    "/var/cache/nscd",
    "/run/nscd",
    "/run/systemd/userdb",
    "/run/systemd/dynamic-uid",
    "/proc/self",
)
# Control groups, and which one a process is in.
_CGROUPS_READ = ("/sys/fs/cgroup", "/proc")
# What says that an id of the system's is nobody's (kmsd.identity.peer).
_OVERFLOW_UID = "/proc/sys/kernel/overflowuid"
# Settings of the libraries that PKCS#11 modules are built on: OpenSSL, p11-kit, time zones, the host's processors.
_MODULES_READ = (
    "/etc/ssl",
    "/etc/pkcs11",
    "/usr/share/p11-kit",
    "/etc/localtime",
    "/usr/share/zoneinfo",
    "/proc/self",
    "/proc/sys/crypto",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/sys/devices/system/cpu",
)
_NETWORK_READ = (
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/protocols",
)


class Confinements:
    """The confinement of the daemon and of each process that the zygote makes."""

    def __init__(self, deployment: Deployment) -> None:
        config = deployment.config
        required = config.hardening == "require"
        self._deployment = deployment
        self._required = required
        network = config.hsm.connect == "network"
        local = config.hsm.connect != "nothing"
        self.zygote = Confinement(
            "zygote", lambda: zygote_calls(network=network), reach=None, required=required, new_code=True
        )
        self.job = Confinement(
            JOB_ENTRY,
            lambda: job_calls(local=local, network=network),
            reach=lambda: _job_reach(deployment, network=network, local=local),
            required=required,
            new_code=True,
        )
        self.worker = Confinement(
            WORKER_ENTRY, worker_calls, reach=Reach, required=required, descriptors=_WORKER_DESCRIPTORS
        )
        self.lookups = Confinement(
            LOOKUPS_ENTRY,
            lookup_calls,
            reach=lambda: Reach(
                readable=(*_code(), *_paths((*_LIBRARIES, *_DEVICES, *_WRITTEN_DEVICES, *_NAMES_READ)))
            ),
            required=required,
        )
        self.recovery = Confinement(
            RECOVERY_ENTRY, recovery_calls, reach=Reach, required=required, descriptors=_RECOVERY_DESCRIPTORS
        )
        # Landlock would keep it from looking at processes that are not under the same restriction, which is its work.
        self.programs = Confinement(PROGRAMS_ENTRY, program_calls, reach=None, required=required)
        self.cgroups = Confinement(
            CGROUPS_ENTRY, cgroup_calls, reach=lambda: Reach(readable=_paths(_CGROUPS_READ)), required=required
        )

    def daemon(self) -> Confinement:
        """Return the confinement of the daemon itself."""
        deployment = self._deployment
        return Confinement(
            "daemon",
            daemon_calls,
            reach=lambda: Reach(
                readable=(*_code(), *_paths((*_LIBRARIES, *_DEVICES, _OVERFLOW_UID)), *deployment.readable),
                writable=(*deployment.writable, *_paths(_WRITTEN_DEVICES)),
            ),
            required=self._required,
            # libuv makes a ring as soon as there is a loop; what is asked for through one, no filter sees.
            hidden=("io_uring_setup",),
        )

    def entries(self) -> Mapping[str, Entry]:
        """Return what the zygote's children run, each confined before it meets anything from outside."""
        deployment = self._deployment
        return {
            JOB_ENTRY: partial(
                _confined,
                self.job.enter,
                partial(run_job, module=str(deployment.module), variables=_variables(deployment)),
            ),
            LOOKUPS_ENTRY: partial(_confined, self.lookups.enter, run_names),
            PROGRAMS_ENTRY: partial(_confined, self.programs.enter, run_programs),
            CGROUPS_ENTRY: partial(_confined, self.cgroups.enter, run_cgroups),
            # Its threads are made between the two steps.
            WORKER_ENTRY: partial(
                _confined, self.worker.restrict_process, partial(run_worker, ready=self.worker.restrict_calls)
            ),
            RECOVERY_ENTRY: partial(run_recovery_job, ready=self.recovery.enter),
            check_entry("zygote"): reporting(self.zygote, _nothing),
            check_entry(JOB_ENTRY): reporting(self.job, self.job.enter),
            check_entry(WORKER_ENTRY): reporting(self.worker, self.worker.enter),
            check_entry(LOOKUPS_ENTRY): reporting(self.lookups, self.lookups.enter),
            check_entry(PROGRAMS_ENTRY): reporting(self.programs, self.programs.enter),
            check_entry(CGROUPS_ENTRY): reporting(self.cgroups, self.cgroups.enter),
            check_entry(RECOVERY_ENTRY): reporting(self.recovery, self.recovery.enter),
        }


def check_required(findings: Iterable[Finding], *, required: bool) -> None:
    """Raise ConfinementError, which names all that is missing, when everything is required and something is missing."""
    if required and (absent := missing(findings)):
        told = "; ".join(map(describe, absent))
        raise ConfinementError(f'hardening = "require", but not everything can be had: {told}')


def describe(finding: Finding) -> str:
    """Return a finding in words."""
    reason = f" ({finding.reason})" if finding.reason else ""
    return f"{finding.process}: {finding.protection}: {finding.state}{reason}"


def memory_finding(kind: MemoryKind) -> Finding:
    """Return what the kind of secret memory means as a protection."""
    if kind is MemoryKind.HIDDEN:
        return Finding("daemon", Protection.SECRET_MEMORY, State.ON, kind.value)
    reason = f"{kind.value}: root can read it; before Linux 6.5 set secretmem.enable=1 on the kernel's command line"
    return Finding("daemon", Protection.SECRET_MEMORY, State.OFF, reason)


def _confined(confine: Callable[[], None], run: Entry, descriptors: list[int]) -> None:
    confine()
    run(descriptors)


def _nothing() -> None:
    return


def _variables(deployment: Deployment) -> frozenset[str]:
    """Return the variables that a token job's request may set: others could have libraries load anything."""
    return frozenset({*deployment.config.hsm.environment, *deployment.token_variables})


def _job_reach(deployment: Deployment, *, network: bool, local: bool) -> Reach:
    hsm = deployment.config.hsm
    # The module's settings are named in its environment: SOFTHSM2_CONF, CS_PKCS11_R3_CFG and the like.
    named = [value for value in hsm.environment.values() if Path(value).is_absolute()]
    readable = (
        *_LIBRARIES,
        *_DEVICES,
        *_MODULES_READ,
        *(_NETWORK_READ if network else ()),
        str(deployment.module.parent),
        *named,
    )
    return Reach(
        readable=(*_code(), *_paths((*readable, *hsm.readable_paths))),
        writable=(*deployment.token_writable, *_paths((*_WRITTEN_DEVICES, *hsm.writable_paths))),
        network=network,
        local=local,
    )


def _code() -> tuple[Path, ...]:
    """Return where Python's code is, ours included: some modules are imported when they are first needed.

    Not whatever PYTHONPATH names: it could be any folder. The packages from outside lie beside one of them.
    """
    standard = (sysconfig.get_path(name) for name in ("stdlib", "platstdlib"))
    return (*dict.fromkeys(_paths(standard)), Path(msgspec.__file__).parent.parent, Path(kmsd.__file__).parent)


def _paths(names: Iterable[str]) -> tuple[Path, ...]:
    return tuple(Path(name) for name in names)
