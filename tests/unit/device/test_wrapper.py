"""A device around a device is, to whoever drives it, the inner one."""

import inspect

from vtl_tools.common.device.base import Device
from vtl_tools.common.device.memory import MemoryDevice
from vtl_tools.common.device.wrapper import Wrapper


def test_all_that_a_device_tells_is_the_inner_ones():
    inner = MemoryDevice("memory:inner", 1500, offload=True)
    told = {*inspect.get_annotations(Device), *vars(Device.__new__(MemoryDevice))}
    for name in told:
        assert isinstance(vars(Wrapper).get(name), property), f"{name} stays with the wrapper"
    inner.close()
