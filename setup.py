"""Everything is in pyproject.toml; this file only ships configs/ and tools/ inside the package."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["moco_d2", "moco_d2.*"]),
        *("moco_d2.configs", "moco_d2.tools"),
    ],
    package_dir={"moco_d2.configs": "configs", "moco_d2.tools": "tools"},
    package_data={
        "moco_d2.configs": ["**/*.yaml"],
        "moco_d2": ["py.typed", "**/*.yaml", "**/*.html", "**/*.css", "**/*.js"],
    },
)
