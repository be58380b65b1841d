"""Software bill of materials, in CycloneDX 1.6: what is in the image, or in the wheel with its locked dependencies.

    sbom.py image SITE_PACKAGES BUNDLES      the installed packages, Python, Debian's packages and the released models
    sbom.py wheel WHEEL LOCK_FILE            the wheel, and the packages of `make serve`

Input: folders and files. Output: JSON on standard output, the same for the same input. Must not know: any package
outside the standard library, because it runs inside the image's build.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import sys
import uuid
import zipfile
from collections.abc import Iterable, Iterator
from email.parser import HeaderParser
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any
from urllib.parse import quote

Component = dict[str, Any]
PROJECT = "meari"
DPKG_STATUS = Path("/var/lib/dpkg/status")
MAX_LICENSE_CHARS = 100  # of a licence's name; some packages have its text there
LOCKED = re.compile(r"^(?P<name>[a-z0-9][a-z0-9._-]*)==(?P<version>[^ ;\\]+)(?P<marker> ;)?", re.MULTILINE)


def main() -> None:
    """Write the bill that the command line asks for."""
    match sys.argv[1:]:
        case ["image", site_packages, bundles]:
            bill = image_bill(Path(site_packages), Path(bundles))
        case ["wheel", wheel, lock]:
            bill = wheel_bill(Path(wheel), Path(lock))
        case _:
            sys.exit(__doc__)
    json.dump(bill, sys.stdout, indent=1, ensure_ascii=False)


def image_bill(site_packages: Path, bundles: Path, dpkg_status: Path = DPKG_STATUS) -> dict[str, Any]:
    """Return the bill of an installed environment and the system under it."""
    found = {normal(each.name): each for each in distributions(path=[str(site_packages)])}
    parts = {name: python_component(name, each.version, license_of(each)) for name, each in found.items()}
    edges = {parts[name]["bom-ref"]: refs(each.requires or [], parts) for name, each in found.items()}
    root = parts.pop(PROJECT) | {"type": "application"}
    python = {"type": "platform", "name": "python", "version": platform.python_version()}
    python["bom-ref"] = python["purl"] = f"pkg:generic/python@{platform.python_version()}"
    rest = [*parts.values(), python, *debian_components(dpkg_status), *model_components(bundles)]
    return bill_of(root, rest, edges)


def wheel_bill(wheel: Path, lock: Path) -> dict[str, Any]:
    """Return the bill of a wheel, with the locked version of each package that it needs."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = HeaderParser().parsestr(archive.read(name).decode("utf-8"))
    locked = list(LOCKED.finditer(lock.read_text("ascii")))
    parts = {each["name"]: python_component(each["name"], each["version"]) for each in locked}
    for each in locked:
        parts[each["name"]]["scope"] = "optional" if each["marker"] else "required"
    root = python_component(PROJECT, metadata["Version"], metadata["License-Expression"] or "")
    root |= {"type": "application", "hashes": [sha256(wheel.read_bytes())]}
    edges = {root["bom-ref"]: refs(metadata.get_all("Requires-Dist") or [], parts)}
    return bill_of(root, parts.values(), edges)


def bill_of(root: Component, parts: Iterable[Component], edges: dict[str, list[str]]) -> dict[str, Any]:
    """Return a whole document. Its serial number follows from its content."""
    components = sorted(parts, key=lambda part: str(part["bom-ref"]))
    known = sorted(edges.items())
    content = {
        "metadata": {"component": root},
        "components": components,
        "dependencies": [{"ref": ref, "dependsOn": found} for ref, found in known],
    }
    serial = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(content, sort_keys=True))
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        **content,
    }


def python_component(name: str, version: str, license_name: str = "") -> Component:
    """Return the component of a package from a package index."""
    purl = f"pkg:pypi/{name}@{quote(version)}"
    component: Component = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
    if license_name:
        component["licenses"] = [{"license": {"name": license_name}}]
    return component


def debian_components(status: Path) -> Iterator[Component]:
    """Yield the packages that Debian's package manager has installed, none on another system."""
    for paragraph in status.read_text("utf-8").split("\n\n") if status.is_file() else []:
        package = HeaderParser().parsestr(paragraph)
        if package["Status"] != "install ok installed":
            continue
        version, arch = quote(package["Version"], safe=""), package["Architecture"]
        purl = f"pkg:deb/debian/{quote(package['Package'], safe='')}@{version}?arch={arch}"
        yield {
            "type": "library",
            "bom-ref": purl,
            "name": package["Package"],
            "version": package["Version"],
            "purl": purl,
        }


def model_components(bundles: Path) -> Iterator[Component]:
    """Yield the models in a folder of bundles; a model's hash is the one that GET /models shows."""
    for path in sorted(bundles.glob("*/manifest.json")):
        hashed = sha256(path.read_bytes())
        ref = f"bundle:{path.parent.name}@{hashed['content'][:16]}"
        yield {"type": "machine-learning-model", "bom-ref": ref, "name": path.parent.name, "hashes": [hashed]}


def refs(requirements: Iterable[str], parts: dict[str, Component]) -> list[str]:
    """Return the references of the packages that are required without any extra, and are there."""
    always = [each.strip() for each in requirements if "extra ==" not in each]
    names = {normal(re.split(r"[^A-Za-z0-9._-]", each, maxsplit=1)[0]) for each in always}
    return sorted(parts[name]["bom-ref"] for name in names if name in parts)


def license_of(package: Distribution) -> str:
    """Return the licence that a package names, "" if it names none in a few words."""
    names = [name for name in ("License-Expression", "License") if name in package.metadata]
    found = package.metadata[names[0]] if names else ""
    return found if len(found) <= MAX_LICENSE_CHARS and "\n" not in found else ""


def sha256(data: bytes) -> dict[str, str]:
    """Return a hash as CycloneDX writes it."""
    return {"alg": "SHA-256", "content": hashlib.sha256(data).hexdigest()}


def normal(name: str) -> str:
    """Return a package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
