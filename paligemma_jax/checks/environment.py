"""The machine before a run: packages, devices, keys, disk. Looks at no network."""

import dataclasses
import importlib.metadata
import os
import pathlib
import platform
import subprocess
from collections.abc import Sequence

import jax
from packaging import requirements, specifiers, utils, version

from paligemma_jax.assembly import weights
from paligemma_jax.checks import findings
from paligemma_jax.files import atomic
from paligemma_jax.hub import addresses as hub_addresses
from paligemma_jax.hub import sites
from paligemma_jax.params import released_models
from paligemma_jax.reports import sections
from paligemma_jax.wording import phrases

Finding = findings.Finding

PROJECT = "paligemma-jax"
CONSTRAINTS = "constraints.txt"
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
NVIDIA_SMI_TIMEOUT_S = 20
GOOGLE_LOGIN = "~/.config/gcloud/application_default_credentials.json"
NO_FILE = "no such file"
PUBLIC_BUCKET = "gs://big_vision/"


@dataclasses.dataclass(frozen=True)
class Package:
    """A package that this one needs.

    Attributes:
      name: as an index spells it.
      installed: its version, None if it is missing.
      needed: what pyproject.toml asks for, as ">=0.10".
      tested: the version in constraints.txt, None where that is not known.
    """

    name: str
    installed: str | None
    needed: str
    tested: str | None

    def problem(self) -> tuple[str, str] | None:
        """Returns (severity, what is wrong), or None within the tested range."""
        if self.installed is None:
            return "error", f"{self.name} is not installed, {self.name}{self.needed} is needed"
        if not specifiers.SpecifierSet(self.needed).contains(self.installed, prereleases=True):
            return "error", f"{self.name} {self.installed} is too old, {self.needed} is needed"
        if self.tested and version.Version(self.installed) > version.Version(self.tested):
            return "note", f"{self.name} {self.installed} is newer than the tested {self.tested}"
        return None


def look(sources: Sequence[str]) -> tuple[sections.Section, list[Finding]]:
    """Returns what there is to know of the machine, and what is wrong with it.

    Args:
      sources: names, addresses and paths of files that a config needs.
    """
    packages = find_packages()
    device_facts, problems = _devices()
    key_facts, missing = _keys(sources)
    free = phrases.size(atomic.free_bytes(os.getcwd()))
    facts = [
        ("python", f"{platform.python_version()}, {platform.platform()}"),
        *device_facts,
        ("packages", _count_packages(packages)),
        *key_facts,
        ("disk here", f"{free} free in {os.getcwd()}"),
    ]
    rows = tuple(
        (p.name, p.installed or "missing", p.needed, p.tested or "not known") for p in packages
    )
    header = ("package", "installed", "needed", "tested")
    table = sections.Table("Packages", header, rows, num_shown=0)
    section = sections.Section("environment", "Environment", (sections.Facts(tuple(facts)), table))
    return section, [*_package_findings(packages), *problems, *missing]


def find_packages() -> list[Package]:
    """Returns the packages that this one asks for, those of extras left out.

    None where it runs without being installed: then nobody knows what it asks for.
    """
    try:
        lines = importlib.metadata.requires(PROJECT) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    tested = _read_constraints()
    packages = []
    for line in lines:
        asked = requirements.Requirement(line)
        if asked.marker and not asked.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = importlib.metadata.version(asked.name)
        except importlib.metadata.PackageNotFoundError:
            installed = None
        name = utils.canonicalize_name(asked.name)
        packages.append(Package(asked.name, installed, str(asked.specifier), tested.get(name)))
    return sorted(packages, key=lambda package: package.name.lower())


def _read_constraints() -> dict[str, str]:
    """Returns the tested versions, {} where the checkout's file is not beside the package."""
    path = pathlib.Path(__file__).parents[2] / CONSTRAINTS
    lines = path.read_text().splitlines() if path.exists() else []
    pins = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {utils.canonicalize_name(name): pinned.strip() for name, pinned in pins}


def _count_packages(packages: Sequence[Package]) -> str:
    if not packages:
        return f"{PROJECT} is not installed, so that what it needs is not known"
    outside = [package for package in packages if package.problem()]
    tested = "of the tested versions" if any(p.tested for p in packages) else "new enough"
    return f"{len(packages) - len(outside)} of {len(packages)} {tested}"


def _package_findings(packages: Sequence[Package]) -> list[Finding]:
    remedies = {
        "error": "pip install -c constraints.txt -e .",
        "note": f"if something fails in it, take the tested one: {CONSTRAINTS}",
    }
    problems = []
    for package in packages:
        if problem := package.problem():
            severity, what = problem
            kind = "package version"
            problems.append(Finding(severity, kind, what, remedies[severity], "environment"))
    return problems


def _devices() -> tuple[list[tuple[str, str]], list[Finding]]:
    """Returns the devices that jax sees and those of the machine, and whether they agree."""
    gpus = _nvidia_gpus()
    facts = [("NVIDIA GPUs", "; ".join(gpus) or "none is found (nvidia-smi)")]
    try:
        seen = weights.describe_devices()
    except RuntimeError as error:
        remedy = "unset JAX_PLATFORMS, or install the extra for this device"
        what = str(error).partition("\n")[0]
        return facts, [Finding("error", "jax finds no device", what, remedy, "environment")]
    facts = [("jax sees", seen), *facts]
    if jax.default_backend() != "cpu":
        return facts, []
    if not gpus:
        what = "jax computes on the CPU: enough for small models, hours for a 3B one"
        remedy = "no GPU is found in this machine; for a TPU install paligemma_jax[tpu]"
        return facts, [Finding("note", "on the CPU", what, remedy, "environment")]
    hidden = [k for k in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES") if os.environ.get(k) is not None]
    what = f"THE GPU IS NOT USED: the machine has {gpus[0]}, and jax computes on the CPU"
    if hidden:
        chosen = ", ".join(f"{name}={os.environ[name]!r}" for name in hidden)
        return facts, [
            Finding("warning", "GPU not used", what, f"set by {chosen}: unset it", "environment")
        ]
    remedy = "pip install -c constraints.txt -e '.[cuda12]' (driver and jax must fit together)"
    return facts, [Finding("error", "GPU not used", what, remedy, "environment")]


def _nvidia_gpus() -> list[str]:
    """Returns "name, memory, driver" of each GPU that the driver knows."""
    try:
        output = subprocess.run(
            NVIDIA_SMI, capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in output.splitlines() if line.strip()]


def _keys(sources: Sequence[str]) -> tuple[list[tuple[str, str]], list[Finding]]:
    """Returns where each file is or comes from, and the keys that are missing for it."""
    facts, problems = [], []
    for source in sources:
        try:
            path = hub_addresses.find(source)
        except ValueError as error:
            problems.append(Finding("error", "address", str(error), "correct it", source))
            continue
        missing = [] if path else _missing_key(source)
        is_known = not any(one.kind == NO_FILE for one in missing)
        fact = f"here: {path}" if path else "to be fetched" if is_known else "not found"
        facts.append((source, fact))
        problems += missing
    return facts, problems


def _missing_key(source: str) -> list[Finding]:
    """Returns what keeps a file that is not here yet from being fetched, as far as can be told."""
    addresses = (
        released_models.FILES[source].sources if source in released_models.FILES else (source,)
    )
    schemes = [address.partition("://")[0] for address in addresses if "://" in address]
    if not schemes:
        what = "neither a file nor a published name"
        remedy = "give a path, an address or a name of the table in docs/interop.md"
        return [Finding("error", NO_FILE, what, remedy, source)]
    needed = {scheme: sites.LOGINS[scheme] for scheme in schemes if scheme in sites.LOGINS}
    if any(sites.has_credentials()[scheme] for scheme in needed):
        return []
    if schemes[0] == "gs" and not source.startswith(PUBLIC_BUCKET) and not _has_google_login():
        what = "no Google credentials are found; public objects need none"
        remedy = "where it is not public: pip install gcsfs, gcloud auth application-default login"
        return [Finding("note", "key missing", what, remedy, source)]
    if not needed:
        return []
    hosts = " or ".join(login.host for login in needed.values())
    remedy = (
        "; or ".join(login.how for login in needed.values())
        + "; then accept the model's licence there"
    )
    is_gated = source in released_models.FILES
    what = f"it needs a key for {hosts}" + ("" if is_gated else ", unless it is public")
    severity = "error" if is_gated else "warning"
    return [Finding(severity, "key missing", what, remedy, source)]


def _has_google_login() -> bool:
    """Whether there are credentials in the places where Google's libraries look."""
    given = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    return pathlib.Path(given or GOOGLE_LOGIN).expanduser().exists()
