"""Content addresses: the same call has the same key, in every process and session.

    identify(fn) -> Function       what is called: its code, and all that the code reaches
    Function.call(args, kwargs)    -> Call: the key, and the arguments in their stored form
    verify(fn, digest)             is this the code that was submitted?

A key is the digest of (format, function, arguments, ranks, preset). Functions and objects
are written as a *canonical stream* of tokens, and the stream is hashed. Its rules:

- Own functions and classes are nodes of a graph. The stream refers to them by number, in
  the order of discovery, and describes each once: cycles end, and it takes linear time.
- Own is what no installed distribution lists among its files: scripts, notebooks, modules
  on a path, editable installs. It counts with its code. Installed code counts with
  distribution and version, the standard library with the version of Python.
- Code counts without file names, line numbers, docstrings and annotations.
- Data counts by value: neither the order of dicts and sets, nor sharing, nor memory layout
  matters. Objects of any class are taken apart as pickle would (``__reduce_ex__``).

A function's record is kept as long as the function lives, with *guards* that tell whether
anything it was made from has changed: identity tests for all that cannot change in place,
a new digest for what can.

The way through, each module importing from those below it only:

    verdict     function loaded by a worker, digest -> yes or no
    function    function -> record; arguments -> key
    guards      whether a record still holds
    arguments   arguments -> parameters -> text, or stream
    canonical   own functions, classes and modules -> stream
    objects, arrays   objects that are taken apart, one by one -> stream
    stream      atoms and containers -> tokens -> digest
    sources     own module -> digest of its file and of those that it imports
    code        bytecode -> what counts of it, and what it uses
    home        module -> the distribution that installed it, or an own file
    refusal     what has no canonical form -> an error that says where, and the cure
"""

from fsbroker.keys.function import UNKNOWN, Call, Function, identify, named, opaque
from fsbroker.keys.verdict import verify

__all__ = ["UNKNOWN", "Call", "Function", "identify", "named", "opaque", "verify"]
