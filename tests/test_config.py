"""Settings: which place wins, what is refused, and how the error says where."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fsbroker import cli, config
from fsbroker.config import Partition, load
from fsbroker.errors import ConfigError, ResourceError
from tests.testbed.users import run_as

REPOSITORY = Path(__file__).resolve().parents[1]
SITES = sorted((REPOSITORY / "deploy" / "sites").glob("*.yaml"))


class Places:
    """The files of one machine, and a working directory below the project's."""

    def __init__(self, root: Path) -> None:
        self.site = root / "site.yaml"
        self.user = root / "home" / "fsbroker" / "config.yaml"
        self.project = root / "project" / "fsbroker.yaml"
        self.below = root / "project" / "a" / "b"
        self.user.parent.mkdir(parents=True)
        self.below.mkdir(parents=True)
        self.site.touch()


@pytest.fixture
def places(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith("FSBROKER_"):
            monkeypatch.delenv(name)
    found = Places(tmp_path)
    monkeypatch.setenv("FSBROKER_SITE_CONFIG", str(found.site))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(found.below)
    return found


def refused(text: str, **explicit: object) -> str:
    with pytest.raises(ConfigError, match=re.escape(text)) as caught:
        load(**explicit)
    return str(caught.value)


# -- which place wins --------------------------------------------------------------------------


def test_built_in(places):
    found = load()
    assert (found.spool, found.backend, found.agents, found.idle_timeout) == (None, "local", 1, 120)
    assert (found.resource_dict, found.mpi, found.partitions) == ({}, {}, {})
    assert tuple(found.origins) == config.KEYS
    assert set(found.origins.values()) == {"built-in"}


def test_the_stronger_place_wins_and_is_named(places, monkeypatch):
    expected = [("built-in", 1)]
    places.site.write_text("\nagents: 2\n")
    expected.append((f"{places.site}:2 (site)", 2))
    places.user.write_text("agents: 3")
    expected.append((f"{places.user}:1 (user)", 3))
    places.project.write_text("# ours\ntag: x\nagents: 4")
    expected.append((f"{places.project}:3 (project)", 4))
    monkeypatch.setenv("FSBROKER_AGENTS", "5")
    expected += [("variable FSBROKER_AGENTS", 5), ("argument", 6)]
    explicit = {"agents": 6}
    undo = (
        explicit.clear,
        lambda: monkeypatch.delenv("FSBROKER_AGENTS"),
        places.project.unlink,
        places.user.unlink,
        lambda: places.site.write_text(""),
        lambda: None,
    )
    for take_away in undo:
        origin, value = expected.pop()
        found = load(**explicit)
        assert (found.origins["agents"], found.agents) == (origin, value)
        take_away()
    assert not expected


def test_mappings_merge_entry_by_entry_and_lists_replace(places, monkeypatch):
    places.site.write_text(
        "resource_dict: {cores: 1, priority: 1}\n"
        "setup: [a, b]\n"
        "mpi: {srun: [srun, -n, '{ranks}'], mpiexec: [mpiexec]}\n"
        "partitions:\n  gpu: {job_time: 60, setup: [c]}\n  cpu: {python: python3}\n"
    )
    places.user.write_text(
        "resource_dict:\n  cores: 2\nsetup: [z]\nmpi: {mpiexec: [mpirun]}\n"
        "partitions:\n  gpu:\n    job_time: 1:30:00\n"
    )
    monkeypatch.setenv("FSBROKER_RESOURCE_DICT", "{cores: 3}")
    found = load(resource_dict={"retries": 0})
    assert found.resource_dict == {"cores": 3, "priority": 1, "retries": 0}
    assert found.setup == ("z",)
    assert found.mpi == {"srun": ("srun", "-n", "{ranks}"), "mpiexec": ("mpirun",)}
    assert found.partitions == {
        "gpu": Partition(job_time=5400.0, setup=("c",)),
        "cpu": Partition(python="python3"),
    }
    assert found.origins["resource_dict.cores"] == "variable FSBROKER_RESOURCE_DICT"
    assert found.origins["resource_dict.priority"] == f"{places.site}:1 (site)"
    assert found.origins["resource_dict.retries"] == "argument"
    assert found.origins["partitions.gpu.job_time"] == f"{places.user}:7 (user)"
    assert found.origins["partitions.gpu.setup"] == f"{places.site}:5 (site)"


def test_null_sets_back_in_files_and_is_not_given_as_an_argument(places, monkeypatch):
    places.site.write_text("max_jobs: 3\npmi_mode: pmix\nmpi:\nresource_dict:\n")
    assert load(max_jobs=None).max_jobs == 3
    places.project.write_text("max_jobs: null")
    monkeypatch.setenv("FSBROKER_PMI_MODE", "null")
    found = load(block_allocation=False)
    assert (found.max_jobs, found.pmi_mode, found.mpi) == (None, None, {})
    assert found.origins["max_jobs"] == f"{places.project}:1 (project)"
    assert found.origins["block_allocation"] == "argument"


def test_the_nearest_project_file_is_the_only_one(places):
    places.project.write_text("agents: 4\nmin_jobs: 1")
    (places.below / "fsbroker.yaml").write_text("agents: 5")
    assert (load().agents, load().min_jobs) == (5, 0)


def test_the_places_that_no_variable_names(places, monkeypatch):
    monkeypatch.setenv("FSBROKER_SITE_CONFIG", "")
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(places.user.parent))
    monkeypatch.setattr(config, "SITE_FILE", str(places.site))
    places.site.write_text("agents: 2")
    mine = places.user.parent / ".config" / "fsbroker" / "config.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("min_jobs: 2")
    assert (load().agents, load().min_jobs) == (2, 2)


def test_a_removed_working_directory_has_no_project(places):
    places.project.write_text("agents: 4")
    places.below.rmdir()
    assert load().agents == 1


# -- values ------------------------------------------------------------------------------------


def test_paths_in_files_start_at_the_file(places, monkeypatch):
    monkeypatch.setenv("DATA", "/data")
    places.project.write_text(
        "spool: data/../spool\nspool_on_nodes: $DATA/s\npython: ./venv/python"
    )
    places.user.write_text("pysqa_config_directory: ~/queues")
    found = load()
    assert found.spool == str(places.project.parent / "spool")
    assert (found.spool_on_nodes, found.python) == (
        "/data/s",
        str(places.project.parent / "venv/python"),
    )
    assert found.pysqa_config_directory == os.path.expanduser("~/queues")
    assert load(spool=Path("$odd/~")).spool == "$odd/~"


def test_a_variable_that_is_not_set_matters_only_where_its_path_is_used(places):
    places.site.write_text("spool: ${NO_SUCH_VARIABLE}/spool")
    assert load(spool="here").spool == "here"
    assert f"{places.site}:1" in refused("spool: ${NO_SUCH_VARIABLE} is not set")


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("spool", "2024", "2024"),
        ("spool", "a: b", "a: b"),
        ("tag", "yes", "yes"),
        ("backend", "none", "none"),
        ("python", "null", None),
        ("python", "python3", "python3"),
        ("max_workers", "null", None),
        ("idle_timeout", "1.5", 1.5),
        ("submit_from_jobs", "no", False),
        ("setup", "[module load x, '']", ("module load x", "")),
        ("tag", "", ""),
        ("tag", "null", "null"),
    ],
)
def test_variables(places, monkeypatch, key, text, value):
    monkeypatch.setenv(f"FSBROKER_{key.upper()}", text)
    assert getattr(load(), key) == value
    expected = f"variable FSBROKER_{key.upper()}" if text else "built-in"
    assert load().origins[key] == expected


# -- what is refused ---------------------------------------------------------------------------

WRONG = [
    "agens: 1",
    "Agents: 1",
    "settings: []",
    "1: 1",
    "agents: 0",
    "agents: yes",
    "agents: 2.0",
    "agents: null",
    "max_workers: many",
    "min_jobs: -1",
    "max_jobs: 0",
    "nodes_per_job: '1'",
    "backend: sge",
    "backend: [slurm]",
    "watch: null",
    "idle_timeout: 0",
    "job_time: .inf",
    "job_time: .nan",
    "job_time: 1h",
    "job_time: true",
    "block_allocation: 1",
    "tag: 3",
    "project: a b",
    "project: ''",
    "pmi_mode: pmix --more",
    "python: ''",
    'spool: "a\\0b"',
    "spool: [a]",
    "spool_on_nodes: 7",
    "setup: module load x",
    "setup: [export A: 1]",
    'setup: ["a\\nb"]',
    'slurm_cmd_args: ["--a\\r"]',
    "submission_template: ''",
    "openmpi_oversubscribe: null",
    "trust: me",
    "mpi: mpiexec",
    "mpi: {mpiexec: mpiexec}",
    "mpi: {mpiexec: []}",
    "mpi: {mpiexec: ['']}",
    "mpi: {mpiexec: null}",
    "mpi: {mpiexec: [mpiexec, '{cores}']}",
    "mpi: {mpiexec: [mpiexec, '{ranks:9}']}",
    "mpi: {mpiexec: [mpiexec, '{']}",
    "mpi: {'a b': [mpiexec]}",
    "partitions: gpu",
    "partitions: {gpu: 1}",
    "partitions: {gpu: {jobtime: 1}}",
    "partitions: {gpu: {agents: 1}}",
    "partitions: {gpu: {job_time: 0}}",
    "partitions: {'a;b': {job_time: 1}}",
    "resource_dict: [cores]",
    "resource_dict: {core: 2}",
    "resource_dict: {cores: two}",
]


@pytest.mark.parametrize("text", WRONG)
def test_wrong_settings_are_refused_with_file_line_and_key(places, text):
    places.site.write_text(f"# comment\n{text}\n")
    assert text.partition(":")[0] in refused(f"{places.site}:2 (site)")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("agens: 1", ["Did you mean 'agents'?", *config.KEYS]),
        ("AGENTS: 1", ["Did you mean 'agents'?"]),
        ("max-jobs: 1", ["Did you mean 'max_jobs'?"]),
        ("partitions: {gpu: {jobtime: 1}}", ["partitions.gpu.jobtime", *config.PARTITION_KEYS]),
        ("backend: sge", [*config.BACKENDS, "'sge'"]),
        ("resource_dict: {core: 2}", ["Did you mean 'cores'?", "threads_per_core"]),
        ("max_jobs: 0", ["an integer of at least 1", "not 0"]),
    ],
)
def test_errors_say_what_is_valid(places, text, told):
    places.site.write_text(text)
    message = refused(f"{places.site}:1 (site)")
    for words in told:
        assert words in message


def test_a_wrong_value_is_refused_where_a_stronger_one_hides_it(places):
    places.site.write_text("agents: none")
    refused("agents must be", agents=2)


def test_what_is_wrong_only_together(places):
    places.site.write_text("min_jobs: 3")
    places.user.write_text("max_jobs: 2")
    told = refused("min_jobs=3 > max_jobs=2")
    assert f"{places.site}:1" in told
    assert f"{places.user}:1" in told
    refused("must begin with /", spool_on_nodes="here", min_jobs=1)
    with pytest.raises(ResourceError, match="cache_key with"):
        load(resource_dict={"cache": "off", "cache_key": "x"}, min_jobs=1)


def test_wrong_arguments(places):
    assert "argument" in refused("Unknown setting 'agens'", agens=1)
    refused("agents must be", agents=True)
    refused("resource_dict must be a mapping", resource_dict=3)
    refused("spool must be a path", spool=b"x")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("agents: [", ":1"),
        ("agents: 1\nagents: 2", ":2"),
        ("partitions:\n  gpu: {}\n  gpu: {}", ":3"),
        ("tag: 2024-13-45", "month"),
        ("? [a, b]\n: 1", ":1"),
        ("- agents", "'key: value'"),
        ("agents", "'key: value'"),
        ("agents: !!python/object/apply:os.getcwd []", "a constructor for the tag"),
        ("setup: &a [x]\ntrust: *a", ":2"),
        ("setup: " + "[" * 10_000, "not YAML"),
        ("tag: \xff", "not YAML"),
    ],
)
def test_what_is_no_mapping_in_yaml(places, text, told):
    places.site.write_bytes(text.encode("latin-1"))
    assert told in refused(str(places.site))


def test_long_values_are_not_printed_whole(places):
    places.site.write_text(f"agents: {'x' * 10_000}")
    assert len(refused("agents must be")) < 1000


def test_files_that_cannot_be_read(places, monkeypatch):
    os.mkfifo(places.project)
    assert str(places.project) in refused("Not a file")
    places.project.unlink()
    places.project.mkdir()
    refused("Is a directory")
    places.project.rmdir()
    places.project.symlink_to("nowhere")
    refused("No such file")
    places.project.unlink()
    places.project.write_text("#" * (1 << 20) + "\n")
    refused("1048576 bytes")
    places.project.unlink()
    monkeypatch.setenv("FSBROKER_SITE_CONFIG", "missing.yaml")
    assert str(places.below / "missing.yaml") in refused("No such file")


@pytest.mark.parametrize("name", ["FSBROKER_MAX_WORKER", "FSBROKER_JOBTIME", "FSBROKER_agents"])
def test_a_variable_that_nearly_is_a_key(places, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert "Did you mean FSBROKER_" in refused(name)


def test_a_variable_of_the_wrong_type_is_named(places, monkeypatch):
    monkeypatch.setenv("FSBROKER_AGENTS", "two")
    refused("variable FSBROKER_AGENTS")
    monkeypatch.setenv("FSBROKER_AGENTS", "[")
    refused("variable FSBROKER_AGENTS")


def test_other_variables_of_the_project_are_left_alone(places, monkeypatch):
    sources = [*REPOSITORY.glob("fsbroker/**/*.py"), *REPOSITORY.glob("tests/**/*.py")]
    sources = [path for path in sources if path != Path(__file__).resolve()]
    sources += [REPOSITORY / "run", REPOSITORY / ".ci" / "run"]
    named = {
        name for path in sources for name in re.findall(r"\bFSBROKER_[A-Z_]+\b", path.read_text())
    }
    others = {name for name in named if name.removeprefix("FSBROKER_").lower() not in config.KEYS}
    assert {"FSBROKER_REQUIRE", "FSBROKER_TOKEN"} <= others
    for name in others - {"FSBROKER_SITE_CONFIG"}:
        monkeypatch.setenv(name, "1")
    assert load().agents == 1


# -- whose file it is --------------------------------------------------------------------------

GUARDED = [
    "trust: [me]",
    "setup: []",
    "submission_template: x",
    "slurm_cmd_args: [x]",
    "python: python3",
    "pysqa_config_directory: /x",
    "mpi: {srun: [srun]}",
    "partitions: {gpu: {setup: [x]}}",
    "partitions: {gpu: {python: x}}",
    "partitions: {gpu: {slurm_cmd_args: [x]}}",
    "resource_dict: {slurm_cmd_args: [x]}",
]


@pytest.mark.parametrize("text", GUARDED)
def test_what_is_guarded_is_refused_from_a_project_file_that_others_may_write(places, text):
    places.project.write_text(f"agents: 2\n{text}")
    for mode in (0o664, 0o646):
        places.project.chmod(mode)
        told = refused("is not taken from a file that is not yours alone")
        assert f"mode {mode:04o}" in told
        assert f"{places.project}:2" in told
        assert str(places.user) in told


def test_what_is_not_guarded_is_taken_from_it(places):
    places.project.write_text("agents: 2\npartitions: {setup: {job_time: 5}}")
    places.project.chmod(0o666)
    assert (load().agents, load().partitions["setup"].job_time) == (2, 5)


def test_the_files_of_user_and_site_are_not_asked_whose_they_are(places):
    for place in (places.site, places.user):
        place.write_text("setup: [x]")
        place.chmod(0o666)
    assert load().setup == ("x",)


@pytest.mark.users
def test_what_is_guarded_is_refused_from_the_file_of_another_user(places, accounts):
    project = accounts.public / "config"
    project.mkdir()
    project.chmod(0o777)
    path = project / "fsbroker.yaml"
    script = (
        "from fsbroker.config import load; from fsbroker.errors import ConfigError\n"
        "try: print(load().setup, load().agents)\n"
        "except ConfigError as error: print(error)"
    )
    write = "open('fsbroker.yaml', 'w').write('agents: 3\\nsetup: [x]\\n')"
    run_as(accounts.a, [accounts.python, "-c", write], cwd=project)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert run_as(accounts.a, [accounts.python, "-c", script], cwd=project).stdout == "('x',) 3\n"
    told = run_as(accounts.b, [accounts.python, "-c", script], cwd=project).stdout
    assert f"user {accounts.a.uid} owns it" in told
    assert f"{path}:2" in told
    # A directory that cannot be searched has no project file.
    project.chmod(0o700)
    assert run_as(accounts.b, [accounts.python, "-c", script], cwd=project).stdout == "() 1\n"


# -- the command -------------------------------------------------------------------------------


def test_show(places, capsys, monkeypatch):
    places.project.write_text(f"resource_dict:\n  cores: 2\nsubmission_template: '{'x' * 500}'")
    monkeypatch.setenv("FSBROKER_TAG", "red\x1b[31m")
    assert cli.main(["config", "show"]) == cli.OK
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["setting", "value", "origin"]
    assert [line.split()[0] for line in lines[1:]] == list(load().origins)
    (cores,) = [line.split() for line in lines if line.startswith("resource_dict")]
    assert cores == ["resource_dict.cores", "2", f"{places.project}:2", "(project)"]
    assert max(map(len, lines)) < 300
    assert not any("\x1b" in line for line in lines)
    assert cli.main(["config", "show", "--json"]) == cli.OK
    told = json.loads(capsys.readouterr().out)
    assert told["submission_template"]["value"] == "x" * 500
    assert told["resource_dict.cores"] == {"value": 2, "origin": f"{places.project}:2 (project)"}
    assert told["backend"] == {"value": "local", "origin": "built-in"}


def test_show_tells_errors_and_wrong_usage(places, capsys):
    places.project.write_text("agens: 2")
    assert cli.main(["config", "show"]) == cli.ERROR
    assert "Did you mean 'agents'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        cli.main(["config"])
    assert ended.value.code == cli.USAGE


def test_without_files_nothing_heavy_is_imported(places):
    code = (
        "import sys; from fsbroker.config import load; assert load().spool == 'x'\n"
        "heavy = {'yaml', 'numpy', 'h5py'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    env = {**os.environ, "FSBROKER_SPOOL": "x"}
    places.site.unlink()
    del env["FSBROKER_SITE_CONFIG"]
    subprocess.run([sys.executable, "-c", code], check=True, env=env)


# -- what is written about it ------------------------------------------------------------------


def test_the_page_lists_every_key_with_its_default(places):
    page = (REPOSITORY / "docs" / "configuration.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|.*\| `(.*)` \|$", page, re.MULTILINE)
    shown = {"": '""', (): "[]", None: "null", True: "true", False: "false"}
    found = {}
    for one in dataclasses.fields(config.Config)[:-1]:
        value = getattr(load(), one.name)
        hashed = value if not isinstance(value, dict) else str(value)
        found[one.name] = shown[hashed] if type(value) in (bool, tuple, type(None)) else str(value)
        found[one.name] = found[one.name] or '""'
    assert dict(rows) == found


@pytest.mark.parametrize("path", SITES, ids=lambda path: path.stem)
def test_the_examples_of_sites_are_valid_and_marked(places, monkeypatch, path):
    monkeypatch.setenv("FSBROKER_SITE_CONFIG", str(path))
    for name in ("SCRATCH", "MEMBERWORK", "USER"):
        monkeypatch.setenv(name, "/somewhere")
    found = load()
    assert found.backend == ("flux" if path.stem == "tuolumne" else "slurm")
    assert os.path.isabs(found.spool)
    assert "Untested" in path.read_text().partition("\n\n")[0]


def test_there_are_examples():
    expected = {"frontier", "juwels", "lumi", "perlmutter", "slurm", "tuolumne"}
    assert {path.stem for path in SITES} == expected
