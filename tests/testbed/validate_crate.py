"""Run by the interpreter that has `roc-validator`: the issues of a crate, as JSON.

    python validate_crate.py CRATE PROFILE SEVERITY

The validator fetches the JSON-LD context that a crate names. Tests have no network: it is
given the same document from the package `rocrate`, which brings that of RO-Crate 1.1.
"""

import json
import os
import sys

import rocrate
from rocrate_validator import services
from rocrate_validator.models import Severity
from rocrate_validator.utils.http import HttpRequester

CONTEXT = "https://w3id.org/ro/crate/1.1/context"


class Answer:
    status_code = 200
    headers = {"Content-Type": "application/ld+json"}  # noqa: RUF012

    def __init__(self):
        path = os.path.join(os.path.dirname(rocrate.__file__), "data", "ro-crate.jsonld")
        with open(path, encoding="utf-8") as file:
            self.text = file.read()
        assert json.loads(self.text)["@id"] == CONTEXT

    def json(self):
        return json.loads(self.text)


def get(url, *_, **__):
    assert url == CONTEXT, f"the validator asks for {url}"
    return Answer()


def main(path, profile, severity):
    HttpRequester.get = staticmethod(get)  # of the class: the validator makes new instances
    settings = services.ValidationSettings(
        rocrate_uri=path,
        profile_identifier=profile,
        requirement_severity=Severity[severity],
        skip_availability_check=True,
    )
    result = services.validate(settings)
    issues = [
        {"check": issue.check.identifier, "severity": issue.severity.name, "says": issue.message}
        for issue in result.get_issues()
    ]
    json.dump({"passed": result.passed(), "issues": issues}, sys.stdout)


main(*sys.argv[1:])
