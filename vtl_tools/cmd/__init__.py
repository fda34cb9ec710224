"""The executables, one module each."""

from vtl_tools.common.garbage import collect_rarely

collect_rarely()  # before the imports of any of them
