"""Packages with encoders, written to a folder as pip installs them."""

import re
import sys
import textwrap
from pathlib import Path

README = (Path(__file__).parents[3] / "pm25" / "encoders" / "README.md").read_text()

ENTRY = """\
[pm25.encoders]
{name} = {module}:{kind}
"""

GOOD = """
    dim, trained_on_target = 2, False

    def __init__(self, source):
        self.scale = source.numbers["scale"]

    @staticmethod
    def source(scale: float = 1.0, path: str | None = None):
        content = b"" if path is None else Path(path).read_bytes()
        return Source("any", {}, content)

    def embed(self, lat, lon, site_id=None):
        return (np.stack([lat, lon], axis=1) * self.scale).astype(np.float32)
"""
"""Body of an encoder class that scales the coordinates."""


def of_readme() -> dict[str, str]:
    """The example of the documentation: its two files by their names."""
    (project,) = re.findall(r"^```toml\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    (module,) = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return {"pyproject.toml": project, "harbours.py": module}


def install(
    folder: Path, name: str, body: str = GOOD, version: str = "1.0", package: str = "", top: str = ""
) -> None:
    """Write a package with the encoder `name`, whose class has this body, into a folder of packages."""
    package = package or f"pkg-{name}"
    module = re.sub(r"\W", "_", package)
    info = folder / f"{module}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(ENTRY.format(name=name, module=module, kind="Kind"))
    head = "from pathlib import Path\nimport numpy as np\nfrom pm25.encoders import Source\n"
    code = f"{top}\n{head}class Kind:\n{textwrap.indent(textwrap.dedent(body), '    ')}"
    (folder / f"{module}.py").write_text(code)
    sys.modules.pop(module, None)  # a test before may have imported another package of this name
