# _core.pyx: the data plane's face: what Python may call.
