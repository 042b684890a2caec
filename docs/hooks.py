"""Shows mkdocstrings the source as the package `litemed`, which only an installation has as a folder."""

import atexit
import configparser
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority

ROOT = Path(__file__).resolve().parent.parent


@event_priority(100)  # before mkdocstrings reads its own settings
def on_config(config: Any) -> Any:
    """Link the folders that setup.cfg maps to packages into a temporary folder and have it searched."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    folder = tempfile.TemporaryDirectory(prefix="litemed-docs-")
    atexit.register(folder.cleanup)
    for line in setup["options"]["package_dir"].split("\n"):
        if line:
            package, _, source = (part.strip() for part in line.partition("="))
            link = Path(folder.name, *package.split("."))
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(ROOT / source, target_is_directory=True)
    handlers = config.plugins["mkdocstrings"].config["handlers"]
    handlers["python"]["paths"] = [folder.name]
    return config
