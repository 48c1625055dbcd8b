"""Settings: what they are, who may set them, and where each value comes from.

    argument > FSBROKER_<KEY> > fsbroker.yaml > the user's file > the site's file > built-in
               (environment)    (project)

    Config      the settings in force; its fields are the keys, equal to `ClusterExecutor`'s
    load        merges the layers
    load_own    without the project file and without arguments: what all processes of a user find

Each layer becomes a flat table, in which an entry of a mapping has a row of its own:
``("resource_dict", "cores")``. So merging the layers is updating one table with the next.
All of a layer is checked, also what a stronger one replaces: a slip shows up at once, and
not when somebody removes what hid it.

A project file comes with a directory that may be somebody else's. From a file that another
user owns or may write, no setting is taken that decides whom to trust or puts text into job
scripts: submitting from there would run their commands in the user's name.
"""

from __future__ import annotations

import difflib
import os
import re
import reprlib
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

from fsbroker.errors import ConfigError, ResourceError
from fsbroker.needs import Resources, merged

BACKENDS = ("local", "allocation", "slurm", "flux", "none")
WATCHES = ("auto", "watchdog", "polling")

PROJECT_FILE = "fsbroker.yaml"
SITE_FILE = "/etc/fsbroker/config.yaml"
VARIABLE = "FSBROKER_"
SITE_VARIABLE = "FSBROKER_SITE_CONFIG"
LARGEST_FILE = 1 << 20
"""Bytes; a settings file has a few hundred."""


class Setting(NamedTuple):
    """One value that is in force.

    Attributes:
        key: entries of mappings with points: ``partitions.gpu.job_time``.
        origin: the file and line, the variable, "argument" or "built-in".
    """

    key: str
    value: Any
    origin: str


@dataclass(frozen=True)
class Partition:
    """What is different in one partition (Flux: queue). None: as everywhere."""

    python: str | None = None
    setup: tuple[str, ...] | None = None
    job_time: float | None = None
    slurm_cmd_args: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Config:
    """The settings in force. The names are those of `ClusterExecutor`'s arguments.

    Attributes:
        spool: the directory that clients and agents share; None: not set anywhere.
        backend: who starts agents.
        max_workers: cores of each local agent (None: all that the process may use), of that of
            an allocation (None: all), or of each queue job that drains the spool (None: what
            its largest task needs).
        agents: how many local agents.
        workers: of a local agent that may be busy at once; None: as many as fit its cores.
        keep: False: the spool is a temporary directory; it is removed, and its agents end, with
            the executor, and calls are not cached.
        resource_dict: defaults for every call (`Resources`).
        tag: a name under which tasks are found again.
        watch: how to see news.
        refresh_rate: the most seconds between two looks for news; None: 5.
        log_obj_size: log how many bytes arguments and values have.
        disable_dependencies: refuse futures among arguments.
        idle_timeout: seconds after which an agent without work ends.
        block_allocation: True: queue jobs drain the spool; False: one for each task.
        min_jobs, max_jobs: how many queue jobs; None: 100.
        nodes_per_job: of one queue job; in an allocation the fewest that `max_workers` are on.
        job_time: seconds; None: what the site gives.
        project: part of the names of queue jobs.
        python: the interpreter on the nodes; None: the client's own path.
        setup: shell lines before the agent starts.
        spool_on_nodes: the path of the spool there; None: the same as here.
        pysqa_config_directory: a site's own ``queue.yaml`` and templates.
        submission_template: the job script, as a Jinja template.
        slurm_cmd_args: more arguments for the scheduler's submit command.
        pmi_mode: for ``srun --mpi=``; None: found out.
        openmpi_oversubscribe: programs of tasks may start more ranks than they have cores.
        flux_executor_nesting: each task of one rank has a Flux instance of its own.
        mpi: arguments of MPI launchers, by name; with {ranks}, {threads} and {nodes}.
        submit_from_jobs: whether compute nodes may submit; None: found out.
        trust: whose results are used as well, in a shared spool: "alice", "@group", "bob:plain".
        sign: whether to sign files, and refuse those of one's own that are not signed: with the
            private key in the user's directory, or in this file.
        keys: public keys by user, of which one must have signed what is taken from that user.
        owners: False: owners and modes of files tell nothing on this file system, signatures do.
        plot_dependency_graph: run nothing, and draw the calls at the end.
        plot_dependency_graph_filename: draw them into this file.
        export_workflow_filename: run nothing, and write the calls to this workflow file.
        partitions: what is different in some.
        settings: all of the above, with their origins.
    """

    spool: str | None = None
    backend: str = "local"
    max_workers: int | None = None
    agents: int = 1
    workers: int | None = None
    keep: bool = True
    resource_dict: Mapping[str, Any] = field(default_factory=dict)
    tag: str = ""
    watch: str = "auto"
    refresh_rate: float | None = None
    log_obj_size: bool = False
    disable_dependencies: bool = False
    idle_timeout: float = 120.0
    block_allocation: bool = False
    min_jobs: int = 0
    max_jobs: int | None = None
    nodes_per_job: int = 1
    job_time: float | None = None
    project: str = "job"
    python: str | None = None
    setup: tuple[str, ...] = ()
    spool_on_nodes: str | None = None
    pysqa_config_directory: str | None = None
    submission_template: str | None = None
    slurm_cmd_args: tuple[str, ...] = ()
    pmi_mode: str | None = None
    openmpi_oversubscribe: bool = False
    flux_executor_nesting: bool = False
    mpi: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    submit_from_jobs: bool | None = None
    trust: tuple[str, ...] = ()
    sign: bool | str = False
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    owners: bool = True
    plot_dependency_graph: bool = False
    plot_dependency_graph_filename: str | None = None
    export_workflow_filename: str | None = None
    partitions: Mapping[str, Partition] = field(default_factory=dict)
    settings: tuple[Setting, ...] = ()

    @property
    def origins(self) -> Mapping[str, str]:
        """Where the value of each key comes from."""
        return {setting.key: setting.origin for setting in self.settings}

    def in_partition(self, name: str | None) -> Config:
        """The settings of one partition: with what is different there."""
        one = self.partitions.get(name or "")
        if one is None:
            return self
        return replace(
            self, **{key: value for key, value in vars(one).items() if value is not None}
        )


# -- what a value must be ----------------------------------------------------------------


class _Kind(NamedTuple):
    """What a value must be, in code and in words; null where the default is None."""

    fits: Callable[[Any], bool]
    wanted: str
    held: Callable[[Any, str | None], Any] = lambda value, _: value
    """The value as `Config` has it, given the directory of the file that it stands in."""
    is_text: bool = False
    """In the environment, taken as it stands: a directory may be called 2024 or yes."""


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and "\0" not in value


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike)) and _is_text(os.fspath(value))


def _are_lines(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(_is_line(one) for one in value)


def _is_line(value: Any) -> bool:
    return isinstance(value, str) and not re.search("[\0\r\n]", value)


def _is_command(value: Any) -> bool:
    if not _are_lines(value) or not value or not value[0]:
        return False
    known = r"\{\{|\}\}|\{(ranks|threads|nodes)\}"
    return not any(re.search("[{}]", re.sub(known, "", argument)) for argument in value)


def _path(value: Any, directory: str | None) -> str:
    """Files are read from anywhere below them: what is relative there starts at the file."""
    path = os.fspath(value)
    if directory is None:
        return str(path)
    path = os.path.expandvars(os.path.expanduser(path))
    if unset := re.search(r"\$\{?\w+\}?", path):
        raise ValueError(f"{unset[0]} is not set")
    return os.path.normpath(os.path.join(directory, path))


def _program(value: Any, directory: str | None) -> str:
    """Without a slash it is looked up in the node's PATH, after `setup`."""
    return _path(value, directory) if "/" in os.fspath(value) else str(value)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _integer(least: int) -> _Kind:
    # bool is an int to Python, but `agents: yes` is a mistake.
    wanted = f"an integer of at least {least}"
    return _Kind(lambda value: type(value) is int and value >= least, wanted)


def _one_of(*valid: str) -> _Kind:
    # `in` alone would compare with anything, also with what cannot be hashed.
    wanted = f"one of {', '.join(valid)}"
    return _Kind(lambda value: type(value) is str and value in valid, wanted, is_text=True)


def _word(what: str, pattern: str) -> _Kind:
    return _Kind(
        lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None,
        what,
        is_text=True,
    )


_BOOL = _Kind(lambda value: type(value) is bool, "true or false")
_SECONDS = _Kind(
    lambda value: type(value) in (int, float) and 0 < value < float("inf"),
    "a number of seconds above 0",
    lambda value, _: float(value),
)
_TEXT = _Kind(_is_text, "a text", is_text=True)
_PATH = _Kind(_is_path, "a path", _path, is_text=True)
_PROGRAM = _Kind(_is_path, "a path or the name of a program", _program, is_text=True)
_LINES = _Kind(_are_lines, "a list of texts of one line each", lambda value, _: tuple(value))
_COMMAND = _Kind(
    _is_command,
    "a list of arguments, the launcher first, in which {ranks}, {threads} and {nodes} stand for "
    "numbers ({{ and }} for braces)",
    lambda value, _: tuple(value),
)
_SIGN = _Kind(
    lambda value: type(value) is bool or _is_path(value),
    "true, false or the path of a private key",
    lambda value, directory: value if type(value) is bool else _path(value, directory),
)
_ED25519 = re.compile(r"ed25519:[A-Za-z0-9+/]{43}=")
_PUBLIC = _Kind(
    lambda value: all(isinstance(one, str) and _ED25519.fullmatch(one) for one in _listed(value)),
    "a public key as 'fsbroker config keygen' prints it (ed25519:...), or a list of such",
    lambda value, _: tuple(_listed(value)),
)
_NAME = re.compile(r"[A-Za-z0-9_.+-]+")

_KINDS = {
    "spool": _PATH,
    "backend": _one_of(*BACKENDS),
    "max_workers": _integer(1),
    "agents": _integer(1),
    "workers": _integer(1),
    "keep": _BOOL,
    "tag": _Kind(lambda value: isinstance(value, str), "a text", is_text=True),
    "watch": _one_of(*WATCHES),
    "refresh_rate": _SECONDS,
    "log_obj_size": _BOOL,
    "disable_dependencies": _BOOL,
    "idle_timeout": _SECONDS,
    "block_allocation": _BOOL,
    "min_jobs": _integer(0),
    "max_jobs": _integer(1),
    "nodes_per_job": _integer(1),
    "job_time": _SECONDS,
    "project": _word("a name of letters, digits, - and _", r"[A-Za-z0-9_-]+"),
    "python": _PROGRAM,
    "setup": _LINES,
    "spool_on_nodes": _PATH,
    "pysqa_config_directory": _PATH,
    "submission_template": _TEXT,
    "slurm_cmd_args": _LINES,
    "pmi_mode": _word("a name of letters, digits and _.+-", _NAME.pattern),
    "openmpi_oversubscribe": _BOOL,
    "flux_executor_nesting": _BOOL,
    "submit_from_jobs": _BOOL,
    "trust": _LINES,
    "sign": _SIGN,
    "owners": _BOOL,
    "plot_dependency_graph": _BOOL,
    "plot_dependency_graph_filename": _PATH,
    "export_workflow_filename": _PATH,
}
_MAPPINGS = {"resource_dict": 1, "mpi": 1, "keys": 1, "partitions": 2}
"""Keys whose values are mappings, and how deep."""
_VALUES = {"mpi": _COMMAND, "keys": _PUBLIC}
"""What the values in a mapping must be, whatever their names."""
_DEFAULTS = {one.name: one.default for one in fields(Config) if one.name in _KINDS}
KEYS = tuple(one.name for one in fields(Config) if one.name != "settings")
PARTITION_KEYS = tuple(one.name for one in fields(Partition))
GUARDED = frozenset(
    {
        "trust",
        "plot_dependency_graph_filename",  # they are written, over what is there
        "export_workflow_filename",
        "setup",
        "submission_template",
        "slurm_cmd_args",
        "python",
        "pysqa_config_directory",
        "mpi",
    }
)
"""Refused from a project file that is not the user's alone, also as a mapping's entry."""
OWN = frozenset({"sign", "keys", "owners"})
"""Taken from nothing that an agent or a worker, which runs elsewhere, would not find as well."""


# -- layers ------------------------------------------------------------------------------

_Key = tuple[Any, ...]


class _Source(NamedTuple):
    """Where values stand.

    Attributes:
        name: the file, the variable or "argument".
        directory: of the file; None: paths are taken as they are.
        suspect: why what is guarded is refused; empty: it is not.
        layer: which of the files; empty: no file.
    """

    name: str
    directory: str | None = None
    suspect: str = ""
    layer: str = ""

    def at(self, line: int) -> str:
        return f"{self.name}:{line} ({self.layer})" if self.layer else self.name


_ARGUMENT = _Source("argument")


class _Row(NamedTuple):
    value: Any
    origin: str
    directory: str | None = None


_Layer = dict[_Key, _Row]


def load_own() -> Config:
    """The settings of this user, wherever he is: `OWN` is the same in all of his processes.

    Raises:
        ConfigError: as `load`.
    """
    found = _built_in()
    for layer, path in _files(project=False):
        found.update(_file(layer, path))
    found.update(_environment())
    return _config(found)


def load(**explicit: Any) -> Config:
    """The settings in force in this process and working directory.

    Args:
        explicit: what was given as arguments; None counts as not given.

    Raises:
        ConfigError: an unknown key, a wrong value, a file that cannot be read, or one that
            sets what its owner may not.
    """
    found = _built_in()
    for layer, path in _files():
        found.update(_file(layer, path))
    found.update(_environment())
    given = {key: value for key, value in explicit.items() if value is not None}
    found.update(_rows(given, _ARGUMENT))
    return _config(found)


def _built_in() -> _Layer:
    return {(key,): _Row(default, "built-in") for key, default in _DEFAULTS.items()}


def _files(*, project: bool = True) -> Iterator[tuple[str, str]]:
    """Those that are there, the weakest first."""
    if site := os.environ.get(SITE_VARIABLE):
        yield "site", os.path.abspath(site)
    elif os.path.lexists(SITE_FILE):
        yield "site", SITE_FILE
    if os.path.lexists(user_file()):
        yield "user", user_file()
    if project and (path := _project_file()):
        yield "project", path


def user_file() -> str:
    """Where the user's own settings stand."""
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return os.path.join(home, "fsbroker", "config.yaml")


def _project_file() -> str | None:
    """In the working directory, or the nearest above it."""
    try:
        directory = os.getcwd()
    except FileNotFoundError:  # it was removed under us
        return None
    while True:
        path = os.path.join(directory, PROJECT_FILE)
        if os.path.lexists(path):
            return path
        if directory == "/":
            return None
        directory = os.path.dirname(directory)


def _file(layer: str, path: str) -> _Layer:
    from fsbroker import yamlmap

    text, status = _read(path)
    suspect = _suspicion(status) if layer == "project" else ""
    values = yamlmap.parse(text, path)
    if values is None:  # empty, or comments only
        return {}
    if not isinstance(values, Mapping):
        raise ConfigError("A settings file must have lines of the form 'key: value'", path)
    return _rows(values, _Source(path, os.path.dirname(path), suspect, layer))


def _read(path: str) -> tuple[bytes, os.stat_result]:
    """Content and status of one and the same file, whatever its name stands for later."""
    try:
        # Without waiting for a FIFO's writer.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode) and status.st_size <= LARGEST_FILE:
                return file.read(LARGEST_FILE), status
    except OSError as error:
        reason = f"The settings cannot be read ({error.strerror})"
        raise ConfigError(reason, path, "Correct it or remove it") from error
    raise ConfigError(f"Not a file of at most {LARGEST_FILE} bytes", path)


def _suspicion(status: os.stat_result) -> str:
    if status.st_uid != os.geteuid():
        return f"user {status.st_uid} owns it"
    mode = stat.S_IMODE(status.st_mode)
    return f"others may write to it, mode {mode:04o}" if mode & 0o022 else ""


def _environment() -> _Layer:
    found: _Layer = {}
    for name, text in sorted(os.environ.items()):
        if not name.startswith(VARIABLE) or not text or name == SITE_VARIABLE:
            continue
        key = name.removeprefix(VARIABLE).lower()
        if key in KEYS and name.isupper():
            found.update(_rows({key: _variable(key, text, name)}, _Source(f"variable {name}")))
        elif near := difflib.get_close_matches(key, KEYS, 1, 0.8):
            # Anything else may stand: tests and tools have variables of that prefix too.
            meant = VARIABLE + near[0].upper()
            raise ConfigError("Unknown variable", name, f"Did you mean {meant}? Else rename it")
    return found


def _variable(key: str, text: str, name: str) -> Any:
    if key in _KINDS and _KINDS[key].is_text:
        return None if text == "null" and _DEFAULTS[key] is None else text
    from fsbroker import yamlmap

    return yamlmap.parse(text, f"variable {name}")


# -- checking and merging ----------------------------------------------------------------


def _rows(values: Mapping[Any, Any], source: _Source) -> _Layer:
    found: _Layer = {}
    for path, value, line in _entries((), values, 0):
        origin = source.at(line)
        if path[0] in OWN and (source.layer == "project" or source == _ARGUMENT):
            what = f"{_dotted(path)} is taken from your own settings alone"
            cure = f"Write it into {user_file()}: agents must find it, too"
            raise ConfigError(what, origin, cure)
        if source.suspect and GUARDED.intersection((path[0], path[-1])):
            raise ConfigError(
                f"{_dotted(path)} is not taken from a file that is not yours alone "
                f"({source.suspect})",
                origin,
                f"Move it to {user_file()}, or have a {PROJECT_FILE} here that is your own and "
                "that nobody else may write (a copy; chmod go-w)",
            )
        _check(path, value, origin)
        found[path] = _Row(value, origin, source.directory)
    return found


def _entries(path: _Key, value: Any, line: int) -> Iterator[tuple[_Key, Any, int]]:
    """The values in a mapping of settings, with their paths and lines."""
    if len(path) > (_MAPPINGS.get(path[0], 0) if path else 0):
        yield path, value, line
    elif isinstance(value, Mapping):
        lines = getattr(value, "lines", {})
        for key, inner in value.items():
            yield from _entries((*path, key), inner, lines.get(key, line))
    elif value is not None:  # a heading all of whose entries are commented out
        yield path, value, line


def _check(path: _Key, value: Any, origin: str) -> None:
    key, *rest = path
    if len(rest) < _MAPPINGS.get(key, 0):
        raise _wrong(path, "a mapping", value, origin)
    if rest and key != "resource_dict" and not _NAME.fullmatch(str(rest[0])):
        raise ConfigError(f"{key}: {rest[0]!r} is no name of letters, digits and _.+-", origin)
    if key == "resource_dict":
        _check_resource(rest[0], value, origin)
    elif key in _VALUES:
        _fit(path, _VALUES[key], value, origin)
    elif key == "partitions":
        _known(path, rest[1], PARTITION_KEYS, origin)
        if value is not None:
            _fit(path, _KINDS[rest[1]], value, origin)
    else:
        _known(path, key, KEYS, origin)
        if not (value is None and _DEFAULTS[key] is None):
            _fit(path, _KINDS[key], value, origin)


def _check_resource(name: Any, value: Any, origin: str) -> None:
    try:
        merged(Resources(), {name: value})
    except ResourceError as error:
        where = f"{error.where}, {origin}" if error.where else origin
        raise ConfigError(f"resource_dict: {error.what}", where, error.cure) from None


def _fit(path: _Key, kind: _Kind, value: Any, origin: str) -> None:
    if not kind.fits(value):
        raise _wrong(path, kind.wanted, value, origin)


def _wrong(path: _Key, wanted: str, value: Any, origin: str) -> ConfigError:
    # Shortened: what should be a number may be a whole template.
    return ConfigError(f"{_dotted(path)} must be {wanted}, not {reprlib.repr(value)}", origin)


def _known(path: _Key, key: Any, valid: tuple[str, ...], origin: str) -> None:
    if key not in valid:
        near = difflib.get_close_matches(str(key).lower(), valid, 1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        cure = f"{hint}Valid: {', '.join(valid)}"
        raise ConfigError(f"Unknown setting {_dotted(path)!r}", origin, cure)


def _dotted(path: _Key) -> str:
    return ".".join(map(str, path))


def _config(found: _Layer) -> Config:
    values: dict[str, Any] = {key: {} for key in _MAPPINGS}
    settings: list[Setting] = []
    for path, row in found.items():
        value = _held(path, row)
        settings.append(Setting(_dotted(path), value, row.origin))
        key, *rest = path
        if key == "partitions":
            values[key].setdefault(rest[0], {})[rest[1]] = value
        elif rest:
            values[key][rest[0]] = value
        else:
            values[key] = value
    settings += [Setting(key, {}, "built-in") for key in _MAPPINGS if not values[key]]
    values["partitions"] = {name: Partition(**one) for name, one in values["partitions"].items()}
    settings.sort(key=lambda one: KEYS.index(one.key.partition(".")[0]))
    return _consistent(Config(**values, settings=tuple(settings)))


def _held(path: _Key, row: _Row) -> Any:
    if row.value is None or path[0] == "resource_dict":
        return row.value
    kind = _VALUES.get(path[0]) or _KINDS[path[-1]]
    try:
        return kind.held(row.value, row.directory)
    except ValueError as error:
        raise ConfigError(f"{_dotted(path)}: {error}", row.origin, "Set it, or the path") from error


def _consistent(config: Config) -> Config:
    """Refuse what only together is wrong."""
    merged(Resources(), config.resource_dict)
    if config.max_jobs is not None and config.min_jobs > config.max_jobs:
        origins = f"{config.origins['min_jobs']}, {config.origins['max_jobs']}"
        raise ConfigError(f"min_jobs={config.min_jobs} > max_jobs={config.max_jobs}", origins)
    if config.spool_on_nodes is not None and not os.path.isabs(config.spool_on_nodes):
        origin = config.origins["spool_on_nodes"]
        raise ConfigError(f"spool_on_nodes={config.spool_on_nodes!r} must begin with /", origin)
    if not config.owners and not config.sign:
        cure = "Set sign, after 'fsbroker config keygen'"
        raise ConfigError("owners=False: then somebody must sign", config.origins["owners"], cure)
    return config


__all__ = ["BACKENDS", "KEYS", "Config", "Partition", "Setting", "load", "user_file"]
