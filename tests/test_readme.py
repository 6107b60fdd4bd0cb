"""Every Python snippet of the README runs, in order, as a reader would paste them."""

import re
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parents[1] / "README.md"


def test_the_snippets_of_the_readme_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(snippets) >= 6
    scope: dict[str, Any] = {}
    for snippet in snippets:
        exec(snippet.replace("/tmp/", f"{tmp_path}/"), scope)
    assert scope["loss"].item() < 0.9  # the training snippet trains: targets of unit variance, fitted by 321 parameters
    assert set(scope["updates"]) == {"w"}
    assert "2.weight" in capsys.readouterr().out  # the table of `diagnose`


def test_the_files_that_the_readme_links_exist() -> None:
    links = re.findall(r"\]\(([^):]+)\)", README.read_text())
    assert links
    missing = [link for link in links if not (README.parent / link).exists()]
    assert missing == []
