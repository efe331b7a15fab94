# The names that are offered here, and where each lives; `_internal.lazy` reads this list as well as type checkers.

from steerkit_vectors_hub.interop.base import (
    Choice as Choice,
    Foreign as Foreign,
    ForeignReader as ForeignReader,
    ForeignWriter as ForeignWriter,
    ModelFacts as ModelFacts,
)
from steerkit_vectors_hub.interop.convert import (
    detect as detect,
    format_names as format_names,
    get_format as get_format,
    is_pack as is_pack,
    read as read,
    registered_formats as registered_formats,
    write as write,
)
