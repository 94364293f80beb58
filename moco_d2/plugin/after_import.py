"""Call a function right after a module is imported, so that `import moco_d2` stays fast.

The import of Detectron2's modeling package takes seconds. `import moco_d2` must not import it to
register a head, or every ``--help`` would take as long.
"""

from collections.abc import Callable

import wrapt


def after_import(name: str, callback: Callable[[], None]) -> None:
    """Call `callback` once: now if module `name` is already imported, else right after its import.

    Neither a search for the module's spec (as libraries do to see whether Detectron2 is installed)
    nor a failed import calls it.
    """
    wrapt.register_post_import_hook(lambda _: callback(), name)
