"""What the crate's ``ro-crate-metadata.json`` says: RO-Crate 1.1, profile Process Run Crate 0.5.

https://w3id.org/ro/crate/1.1, https://w3id.org/ro/wfrun/process/0.5. Each task is a CreateAction:
its function the instrument, what it depends on the object, its value the result.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, NamedTuple

from fsbroker.report.shown import cut

SHORT = 200
"""Characters of a value; `tasks.json` has all of it."""
CRATE = "https://w3id.org/ro/crate/1.1"
PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
SHA256 = "https://w3id.org/ro/terms/workflow-run#sha256"
STATUS = {"done": "CompletedActionStatus"}
"""Of a task; any other has failed."""
FORMATS = {
    "json": ("application/json", "https://www.json.org"),
    "svg": ("image/svg+xml", "https://www.w3.org/TR/SVG2"),
    "h5": ("application/x-hdf5", "https://www.hdfgroup.org/solutions/hdf5"),
}
PICKLE = ("application/x-python-pickle", "https://docs.python.org/3/library/pickle.html")
NAMES = {
    "workflow.json": "The calls and what they pass on, as a Python Workflow Definition",
    "workflow.svg": "The same, drawn",
    "tasks.json": "Function, arguments, value, versions, host and times of each task",
}

Entity = dict[str, Any]


class About(NamedTuple):
    """What a person says of a crate.

    Attributes:
        license: a URL, or words.
    """

    name: str
    description: str
    license: str


def metadata(
    about: About, parts: Mapping[str, tuple[int, str]], tasks: Sequence[Mapping[str, Any]]
) -> Entity:
    """The content of the file.

    Args:
        parts: size and SHA-256 of each file of the crate.
        tasks: as they stand in ``tasks.json``.
    """
    entities = [*_head(about, parts, tasks), *_files(parts), *_people(tasks), *_functions(tasks)]
    for task in tasks:
        entities += _task(task)
    return {"@context": [f"{CRATE}/context", {"sha256": SHA256}], "@graph": entities}


def _head(
    about: About, parts: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]]
) -> Iterator[Entity]:
    yield {
        "@id": "ro-crate-metadata.json",
        "@type": "CreativeWork",
        "conformsTo": _id(CRATE),
        "about": _id("./"),
    }
    is_url = about.license.startswith(("http://", "https://"))
    license_id = about.license if is_url else "#license"
    yield {
        "@id": "./",
        "@type": "Dataset",
        "name": about.name,
        "description": about.description,
        "datePublished": _moment(datetime.now(timezone.utc).timestamp()),
        "license": _id(license_id),
        "conformsTo": _id(PROFILE),
        "author": _ids(f"#user-{user}" for user in _users(tasks)),
        "hasPart": _ids(parts),
        "mentions": _ids(f"#task-{task['key']}" for task in tasks),
    }
    yield {"@id": PROFILE, "@type": "CreativeWork", "name": "Process Run Crate", "version": "0.5"}
    yield {
        "@id": license_id,
        "@type": "CreativeWork",
        "name": about.license,
        "description": "The terms under which this crate may be used",
    }


def _files(parts: Mapping[str, tuple[int, str]]) -> Iterator[Entity]:
    formats: dict[str, str] = {}
    for name, (size, digest) in parts.items():
        kind, page = FORMATS.get(name.rpartition(".")[2], PICKLE)
        formats[page] = kind
        yield {
            "@id": name,
            "@type": "File",
            "name": NAMES.get(name, name),
            "description": _description(name),
            "encodingFormat": [kind, _id(page)],
            "contentSize": str(size),
            "sha256": digest,
        }
    for page, kind in formats.items():
        yield {"@id": page, "@type": "WebSite", "name": kind}


def _description(name: str) -> str:
    if name.startswith("pickles/"):
        return "A pickle of Python: reading it runs code. Its arrays stand in the HDF5 files"
    if name.endswith(".h5"):
        return "Arrays, by task, and whether they belong to its arguments or its value"
    return NAMES.get(name, name)


def _people(tasks: Sequence[Mapping[str, Any]]) -> Iterator[Entity]:
    for user in _users(tasks):
        yield {"@id": f"#user-{user}", "@type": "Person", "name": user}


def _users(tasks: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(_user(task) for task in tasks))


def _user(task: Mapping[str, Any]) -> str:
    return str(task["client"].get("user") or "unknown")


def _functions(tasks: Sequence[Mapping[str, Any]]) -> Iterator[Entity]:
    for digest, function in {t["function"]["digest"]: t["function"] for t in tasks}.items():
        yield {
            "@id": _function(digest),
            "@type": "SoftwareApplication",
            "name": function["name"],
            "description": "A function of Python; its text stands in tasks.json",
            "softwareVersion": digest,
            "url": _id("tasks.json"),
        }


def _function(digest: str) -> str:
    return f"urn:fsbroker:function:{digest}"


def _task(task: Mapping[str, Any]) -> Iterator[Entity]:
    key, done = task["key"], task["status"] == "done"
    end = task["started"] + task["wall"]
    inputs = [f"#value-{one['key']}" for one in task["dependencies"]]
    agent, client = task["agent"], task["client"]
    action = {
        "@id": f"#task-{key}",
        "@type": "CreateAction",
        "name": f"{task['function']['name']} ({key[:12]})",
        "description": (
            f"Run on {agent.get('host', '?')} with Python {agent.get('version', '?')}, "
            f"submitted on {client.get('host') or '?'}"
        ),
        "instrument": _id(_function(task["function"]["digest"])),
        "agent": _id(f"#user-{_user(task)}"),
        "startTime": _moment(task["started"]),
        "endTime": _moment(end),
        "actionStatus": f"http://schema.org/{STATUS.get(task['status'], 'FailedActionStatus')}",
        "object": _ids([f"#arguments-{key}", *dict.fromkeys(inputs)]),
    }
    yield _value(f"#arguments-{key}", "arguments", task["arguments"])
    if done:
        action["result"] = _ids([f"#value-{key}", *_files_of(task["value"])])
        yield _value(f"#value-{key}", "value", task["value"])
    else:
        action["error"] = json.dumps(task["error"] or {"type": task["status"]})
    yield action


def _value(name: str, what: str, stored: Mapping[str, Any]) -> Entity:
    text = json.dumps(stored["data"]) if "data" in stored else f"a pickle: {stored['file']}"
    found = {"@id": name, "@type": "PropertyValue", "name": what, "value": cut(text, SHORT)}
    files = _files_of(stored)
    return {**found, "subjectOf": _ids(files)} if files else found


def _files_of(stored: Mapping[str, Any]) -> list[str]:
    files = [str(array["file"]) for array in stored["arrays"]]
    files += [str(stored["file"])] if "file" in stored else []
    return list(dict.fromkeys(files))


def _ids(names: Iterable[str]) -> Entity | list[Entity]:
    """One reference stands alone, as the specification asks."""
    found = [_id(name) for name in names]
    return found[0] if len(found) == 1 else found


def _id(name: str) -> Entity:
    return {"@id": name}


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds")
