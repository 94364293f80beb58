"""Everything is in pyproject.toml; this file only ships configs/ as the data package
moco_d2.configs.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["moco_d2", "moco_d2.*"]), "moco_d2.configs"],
    package_dir={"moco_d2.configs": "configs"},
    package_data={
        "moco_d2.configs": ["**/*.yaml"],
        "moco_d2": ["py.typed", "**/*.yaml", "**/*.html"],
    },
)
