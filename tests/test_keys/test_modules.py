"""Own modules count with their code, installed ones with their version."""

from __future__ import annotations

import importlib
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import typing
import zipfile

import pytest

from fsbroker.errors import CannotPickle
from fsbroker.keys import identify, verify
from tests.test_keys.sessions import anything, changed, define, key, key_of, run

USER = """
import json
import usermod, usermod.sub
from usermod import direct
from usermod.rel import relative
from fsbroker.keys import identify
def attribute(x): return usermod.helper(x)
def deep(x): return usermod.sub.helper(x)
def alias(x): m = usermod; return m.helper(x)
def dynamic(x, name): return getattr(usermod, name)(x)
def inner(x):
    from usermod import helper
    return helper(x)
def inner_deep(x):
    import usermod.sub as s
    return s.helper(x)
def inner_from(x):
    from usermod import sub
    return sub.helper(x)
found = dict(attribute=attribute, deep=deep, alias=alias, dynamic=dynamic, inner=inner,
             inner_deep=inner_deep, inner_from=inner_from, direct=direct,
             unrelated=usermod.unrelated, relative=relative)
print(json.dumps({name: identify(fn).digest.hex() for name, fn in found.items()}))
"""

MODULE = """
CONSTANT = 1
def helper(x): return x + CONSTANT
def direct(x): return helper(x)
def unrelated(x): return x
"""

WHOLE = "alias dynamic inner inner_deep inner_from relative"
"""What counts with all of the module's source."""

RELATIVE = """
def relative(x):
    from . import sub
    return sub.helper(x)
"""


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "path" / "usermod"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(MODULE)
    (folder / "sub.py").write_text("def helper(x): return x")
    (folder / "rel.py").write_text(RELATIVE)
    (tmp_path / "user.py").write_text(USER)
    return folder


@pytest.mark.parametrize(
    ("old", "new", "touched"),
    [
        ("CONSTANT = 1", "CONSTANT = 2", f"attribute direct {WHOLE}"),
        ("x + CONSTANT", "x - CONSTANT", f"attribute direct {WHOLE}"),
        ("CONSTANT = 1", "# a comment\nCONSTANT = 1\n", ""),
        ("def unrelated(x): return x", "def unrelated(x): return -x",
         f"unrelated {WHOLE}"),
    ],
)  # fmt: skip
def test_an_own_module_counts_with_the_code_that_is_used(package, tmp_path, old, new, touched):
    before = run(tmp_path / "user.py", package.parent)
    (package / "__init__.py").write_text(MODULE.replace(old, new))
    after = run(tmp_path / "user.py", package.parent, seed=5)
    assert changed(before, after) == set(touched.split())


def test_a_submodule_counts_where_it_is_used(package, tmp_path):
    before = run(tmp_path / "user.py", package.parent)
    (package / "sub.py").write_text("def helper(x): return -x")
    after = run(tmp_path / "user.py", package.parent)
    assert changed(before, after) == {"deep", "inner_deep", "inner_from", "relative"}


def install(folder: pathlib.Path, version: str, code: str) -> None:
    """A distribution named Tiny-Dist with the package tinypkg, as an installer leaves it."""
    for old in folder.glob("*.dist-info"):
        for file in old.iterdir():
            file.unlink()
        old.rmdir()
    (folder / "tinypkg").mkdir(parents=True, exist_ok=True)
    (folder / "tinypkg" / "__init__.py").write_text(code)
    info = folder / f"tiny_dist-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: Tiny-Dist\nVersion: {version}\n")
    (info / "RECORD").write_text(
        f"tinypkg/__init__.py,,\n{info.name}/METADATA,,\n{info.name}/RECORD,,\n"
    )


INSTALLED = """
import json, tinypkg
from tinypkg import direct
from fsbroker.keys import identify
def attribute(x): return tinypkg.direct(x)
def inner(x):
    import tinypkg
    return tinypkg.direct(x)
found = dict(direct=direct, attribute=attribute, inner=inner, cls=tinypkg.Thing)
print(json.dumps({name: identify(fn).digest.hex() for name, fn in found.items()}))
"""


def test_an_installed_package_counts_with_its_version(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(INSTALLED)
    code = "def direct(x): return x\nclass Thing:\n    pass\n"
    install(tmp_path / "a", "1.0", code)
    install(tmp_path / "b", "1.0", code.replace("return x", "return x  # built elsewhere"))
    one, elsewhere = run(script, tmp_path / "a"), run(script, tmp_path / "b")
    assert one == elsewhere
    install(tmp_path / "a", "1.1", code)
    assert changed(one, run(script, tmp_path / "a")) == set(one)


def test_a_package_without_a_distribution_is_own_code(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(INSTALLED)
    folder = tmp_path / "site-packages"
    install(folder, "1.0", "def direct(x): return x\nclass Thing: pass\n")
    (folder / "tiny_dist-1.0.dist-info" / "RECORD").write_text("something/else.py,,\n")
    one = run(script, folder)
    (folder / "tinypkg" / "__init__.py").write_text("def direct(x): return -x\nclass Thing: pass\n")
    assert changed(one, run(script, folder)) == {"direct", "attribute", "inner"}


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """An imported module of the user, and a way to edit it on disk."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    file = tmp_path / "ownmod.py"
    file.write_text("def f(x): return x + 1\n")
    module = importlib.import_module("ownmod")
    yield module, file
    sys.modules.pop("ownmod", None)


SUBMIT = """
import json, sys, ownmod
from fsbroker.keys import identify
print(json.dumps(identify(ownmod.f).digest.hex()))
"""


def test_a_worker_with_stale_code_is_told_so(own_module, tmp_path):
    module, file = own_module
    script = tmp_path / "submit.py"
    script.write_text(SUBMIT)
    old = bytes.fromhex(run(script))
    assert verify(module.f, old)
    file.write_text("def f(x): return x + 2\n")
    new = bytes.fromhex(run(script))
    assert not verify(module.f, new)
    assert verify(importlib.reload(module).f, new)


def test_a_worker_that_imported_a_module_while_it_ran_is_told_so(own_module, tmp_path):
    _, file = own_module
    sys.modules.pop("ownmod")
    source = "def f(x):\n    import ownmod\n    return ownmod.f(x)\n"
    script = tmp_path / "submit.py"
    script.write_text(source + SUBMIT.replace("import json, sys, ownmod", "import json").replace(
        "ownmod.f", "f"))  # fmt: skip
    old = bytes.fromhex(run(script))
    worker = define(source)
    assert verify(worker, old)
    assert worker(1) == 2  # now it is imported
    file.write_text("def f(x): return x + 200\n")
    new = bytes.fromhex(run(script))
    assert new != old
    assert not verify(worker, new)
    sys.modules.pop("ownmod")
    assert verify(define(source), new)


def test_state_that_tasks_left_in_a_module_does_not_undo_a_verdict(own_module):
    module, file = own_module
    file.write_text("seen = []\ndef f(x):\n    seen.append(x)\n    return len(seen)\n")
    importlib.reload(module)
    digest = identify(module.f).digest
    assert verify(module.f, digest)
    module.f(1)
    assert verify(module.f, digest)
    assert identify(module.f).digest != digest


def test_what_a_module_loads_on_first_use_is_the_same_before_and_after(own_module):
    module, file = own_module
    file.write_text(
        "def __getattr__(name):\n"
        "    if name != 'late':\n"
        "        raise AttributeError(name)\n"
        "    globals()['late'] = lambda x: x\n"
        "    return globals()['late']\n"
    )
    importlib.reload(module)
    user = define("import ownmod\ndef f(x): return ownmod.late(x)\n")
    before = identify(user).digest
    assert user(3) == 3
    vars(module).pop("__warningregistry__", None)
    importlib.reload(module)
    assert identify(define("import ownmod\ndef f(x): return ownmod.late(x)\n")).digest == before


def test_an_own_module_may_hold_what_has_no_address(own_module):
    module, file = own_module
    text = "handle = (n for n in [])\ndef f(x): return handle, x\n"
    file.write_text(text)
    importlib.reload(module)
    before = key(module.f, 1)
    assert key(module.f, 1) == before
    sys.modules.pop("ownmod")
    file.write_text(text.replace("[])", "[1])"))
    assert key(importlib.import_module("ownmod").f, 1) != before


LOCAL_IMPORT = """
import json, os
from fsbroker import keys, pickling
def f(x):
    import onlythere
    return onlythere.g(x)
sent = os.environ.get("SENT")
if sent:
    digest, data = map(bytes.fromhex, sent.split())
    print(json.dumps(keys.verify(pickling.load_function(data), digest)))
else:
    record = keys.identify(f)
    print(json.dumps([record.digest.hex(), record.pickle.hex()]))
"""


def test_a_package_that_only_the_compute_nodes_have_is_no_other_code(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(LOCAL_IMPORT)
    install(tmp_path / "there", "1.0", "")
    package = tmp_path / "there" / "onlythere"
    (tmp_path / "there" / "tinypkg").rename(package)
    record = tmp_path / "there" / "tiny_dist-1.0.dist-info" / "RECORD"
    record.write_text("onlythere/__init__.py,,\n")
    sent = " ".join(run(script))
    assert run(script, tmp_path / "there", SENT=sent) is True


def test_a_package_without_a_list_of_files_is_known_by_its_name(tmp_path):
    script = tmp_path / "script.py"  # as Linux distributions install it
    script.write_text(INSTALLED)
    folder = tmp_path / "dist-packages"
    install(folder, "1.0", "def direct(x): return x\nclass Thing: pass\n")
    (folder / "tiny_dist-1.0.dist-info" / "RECORD").unlink()
    (folder / "tiny_dist-1.0.dist-info" / "top_level.txt").write_text("tinypkg\n")
    one = run(script, folder)
    (folder / "tinypkg" / "__init__.py").write_text("def direct(x): return -x\nclass Thing: pass\n")
    assert run(script, folder) == one


def importing(statement: str) -> bytes:
    return key_of(f"def f(x):\n    {statement}\n    return x", 1)


def test_a_module_that_is_not_imported_yet_counts_with_its_file(own_module):
    _, file = own_module
    sys.modules.pop("ownmod")
    before = importing("import ownmod")
    assert importing("import ownmod") == before
    file.write_text("this does not compile")
    broken = importing("import ownmod")
    file.write_text("this does not compile either")
    assert len({before, broken, importing("import ownmod")}) == 3


def test_a_module_inside_what_is_no_package_is_missing(own_module, tmp_path):
    sys.modules.pop("ownmod")
    before = importing("import ownmod.sub")
    (tmp_path / "sub.py").write_text("")  # not to be taken for it
    assert importing("import ownmod.sub") == before


def test_a_missing_module_that_comes_is_noticed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    f = define("def f(x):\n    import comesmod\n    return x")
    before = key(f, 1)
    assert key(f, 1) == before
    (tmp_path / "comesmod.py").write_text("")
    importlib.invalidate_caches()
    assert key(f, 1) != before


def test_a_finder_that_forbids_a_module_is_passed_over(own_module, monkeypatch):
    class Denier:  # as IPython has one against mixing Qt bindings
        def find_spec(self, name, path, target=None):
            raise ImportError(name)

    sys.modules.pop("ownmod")
    before = importing("import ownmod")
    monkeypatch.setattr(sys, "meta_path", [Denier(), *sys.meta_path])
    assert importing("import ownmod") == before


def test_modules_may_come_from_an_archive(tmp_path, monkeypatch):
    archive = tmp_path / "lib.zip"
    with zipfile.ZipFile(archive, "w") as written:
        written.writestr("zipmod.py", "N = 1\ndef f(x): return x + N\n")
    monkeypatch.syspath_prepend(archive)
    module = importlib.import_module("zipmod")
    before = key(module.f, 1)
    assert importing("import zipmod") == importing("import zipmod")
    module.N = 2
    assert key(module.f, 1) != before


def test_a_name_that_an_own_module_has_for_an_object(own_module):
    module, file = own_module
    text = "class Kind:\n    def __reduce__(self): return 'NOTHING'\nNOTHING = Kind()\nMORE = 1\n"
    file.write_text(text)
    importlib.reload(module)
    assert key(anything, module.NOTHING) == key(anything, module.NOTHING)
    with pytest.raises(CannotPickle, match="no content address"):
        key_of(text + "def f(): return NOTHING")


def test_an_attribute_that_an_own_module_lacks_is_noticed_when_it_comes(own_module):
    module, _ = own_module
    f = define("import ownmod\ndef f(x): return ownmod.later")
    before = key(f, 1)
    module.later = 1
    assert key(f, 1) != before
    assert verify(f, identify(f).digest)


STATELESS = """
import threading, typing, weakref
T = typing.TypeVar("T")
lock, local, seen = threading.Lock(), threading.local(), weakref.WeakSet()
def f(x):
    with lock:
        local.x = typing.cast(T, x)
        seen.add(f)
        return x, __builtins__
"""


def test_what_holds_no_data_may_stand_in_globals(own_module):
    module, file = own_module
    file.write_text(STATELESS)
    before = key(importlib.reload(module).f, 1)
    module.f(1)
    assert key(module.f, 1) == before
    module.T = typing.TypeVar("S")
    assert key(module.f, 1) != before


EXTENSION = """
#include <Python.h>
static PyTypeObject Box = {PyVarObject_HEAD_INIT(NULL, 0) .tp_name = "ownext.Box",
    .tp_basicsize = sizeof(PyObject), .tp_flags = Py_TPFLAGS_DEFAULT, .tp_new = PyType_GenericNew};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "ownext", NULL, -1, NULL};
PyMODINIT_FUNC PyInit_ownext(void) {
    PyObject *made = PyModule_Create(&module);
    return PyType_Ready(&Box) < 0 || PyModule_AddObjectRef(made, "Box", (PyObject *)&Box) < 0
        ? NULL : made;
}
"""

BOXED = """
import json, ownext
from fsbroker.keys import identify
print(json.dumps(identify(ownext.Box).digest.hex()))
"""


def test_an_own_compiled_extension_counts_with_its_file(tmp_path):
    compiler, include = shutil.which("cc"), sysconfig.get_path("include")
    if compiler is None or not os.path.exists(os.path.join(include, "Python.h")):
        pytest.skip("no C compiler, or no headers of Python")
    script, source = tmp_path / "boxed.py", tmp_path / "ownext.c"
    script.write_text(BOXED)

    def built(text: str) -> str:
        source.write_text(text)
        command = [
            compiler,
            "-shared",
            "-fPIC",
            "-I",
            include,
            "-o",
            tmp_path / "ownext.so",
            source,
        ]
        subprocess.run(command, check=True)
        return run(script)

    before = built(EXTENSION)
    assert run(script) == before
    assert built(EXTENSION.replace("GenericNew", 'GenericNew, .tp_doc = "New."')) != before
