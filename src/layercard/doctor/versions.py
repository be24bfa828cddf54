"""Which releases are installed, beside those that layercard was tested with. Imports none of them."""

from __future__ import annotations

from collections.abc import Iterator

from packaging.version import InvalidVersion, Version

from layercard import __version__
from layercard.doctor.check import Check, failed, ok, warning
from layercard.doctor.tested import HOSTS, NEEDED, PART_OF, TESTED, Releases
from layercard.versions import installed_versions


def check_versions() -> Iterator[Check]:
    """Yield a check for layercard, for each of its plugins, and for each package that they work with."""
    found = installed_versions(["layercard", *HOSTS.values(), *TESTED])
    yield _own("layercard", found.get("layercard"))
    for plugin in HOSTS.values():
        if plugin in found:
            yield _own(plugin, found[plugin])
    for package in NEEDED:
        yield _needed(package, found.get(package))
    for package, plugin in HOSTS.items():
        whole = PART_OF.get(package)
        if package in found and plugin not in found and whole in found and HOSTS[whole] in found:
            yield ok(package, f"{found[package]}, as {whole} {found[whole]} asks for")
        elif package in found:
            yield _host(package, found[package], plugin, has_plugin=plugin in found)
        elif plugin in found:
            yield failed(package, f"not installed, and {plugin} is", f"Install it, or uninstall {plugin}.")


def _own(package: str, version: str | None) -> Check:
    """layercard's packages are released together, and work together in one release."""
    if version == __version__:
        return ok(package, version)
    if version is None:
        return failed(package, "runs from a folder and is not installed", "Run `pip install .` in a checkout.")
    return failed(
        package,
        f"{version} is installed; the code that runs is layercard {__version__}",
        f"Install layercard and its plugins in one release, such as `pip install layercard=={__version__}`.",
    )


def _needed(package: str, version: str | None) -> Check:
    if version is None:
        return failed(package, "not installed", f"Run `pip install '{package}>={TESTED[package].least}'`.")
    return compared(package, version, TESTED[package])


def _host(package: str, version: str, plugin: str, *, has_plugin: bool) -> Check:
    check = compared(package, version, TESTED[package])
    if has_plugin or check.status == "failed":
        return check
    return warning(
        package,
        f"{check.found}; without {plugin} its trainers are not placed into",
        f"Run `pip install {plugin}`, or from a checkout `pip install ./plugins/{plugin}`.",
    )


def compared(package: str, version: str, tested: Releases) -> Check:
    """Return how an installed release stands to those that were tested; a later patch of the newest counts as it."""
    shown = f"{version} (needed: {tested.least} or later; tested: up to {tested.newest})"
    try:
        installed, newest = Version(version), Version(tested.newest)
    except InvalidVersion:
        return warning(package, shown, "The version cannot be read, so look at the toy run below.")
    if installed < Version(tested.least):
        return failed(package, shown, f"Run `pip install '{package}>={tested.least}'`.")
    if installed.release[:2] > newest.release[:2]:
        return warning(
            package,
            shown,
            f"Newer than what was tested. Where a check below fails, install {package} {tested.newest}.",
        )
    return ok(package, shown)
