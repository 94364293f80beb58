"""The filters of warnings before what we import adds its own: those of Python and of pytest."""

import warnings

FIRST_FILTERS = list(warnings.filters)
