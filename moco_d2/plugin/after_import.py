"""Call a function right after a module is imported, so that `import moco_d2` stays cheap.

Importing Detectron2's modeling package takes seconds. If `import moco_d2` registered a head in it,
every ``--help`` would pay for that; a note that is acted on when Detectron2 itself is imported
costs nothing.
"""

from collections.abc import Callable

import wrapt


def after_import(name: str, callback: Callable[[], None]) -> None:
    """Call `callback` once: now if module `name` is imported already, else right after its import.

    Looking for the spec of a module, as many a library does to see whether Detectron2 is installed,
    calls nothing; neither does an import that fails, which can be repeated. A module that is never
    imported, or is not installed, never triggers its callback.
    """
    wrapt.register_post_import_hook(lambda _: callback(), name)
